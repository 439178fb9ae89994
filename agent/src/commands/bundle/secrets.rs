//! What is taken out of a text before it leaves the node: user and password of URLs, access keys, tokens and the like, and what EC2
//! encodes of the role's policy in a refusal ("Encoded authorization failure message"). Where it is not certain, too much goes.

/// In place of what was taken out.
const REMOVED: &str = "REMOVED";
/// Names of secrets, in lower case: what follows `:` or `=` after one goes, up to a space, a quote or a separator.
const NAMES: [&str; 12] = [
    "encoded authorization failure message",
    "x-amz-security-token",
    "x-amz-signature",
    "authorization",
    "secret_access_key",
    "secretaccesskey",
    "session_token",
    "sessiontoken",
    "password",
    "access_token",
    "id_token",
    "?token",
];
/// How ids of access keys begin ("IAM identifiers" in the IAM User Guide), and how many characters follow at least.
const KEYS: [&str; 2] = ["AKIA", "ASIA"];
const KEY: usize = 12;

/// The text without them. The same secret becomes the same everywhere, so that a recording is still replayed.
pub fn without(text: &str) -> String {
    let text = NAMES.iter().fold(text.to_owned(), |text, name| of_name(&text, name));
    of_urls(&KEYS.iter().fold(text, |text, key| of_key(&text, key)))
}

/// Where a value ends.
fn ends(c: char) -> bool {
    c.is_whitespace() || matches!(c, '"' | '\'' | '\\' | ',' | ';' | '&' | '}' | ')')
}

fn of_name(text: &str, name: &str) -> String {
    let lower = text.to_ascii_lowercase(); // of the same length
    let mut kept = String::with_capacity(text.len());
    let mut at = 0;
    while let Some(found) = lower[at..].find(name) {
        let after = at + found + name.len();
        kept.push_str(&text[at..after]);
        let rest = &text[after..];
        let between = rest.len() - rest.trim_start_matches(['"', '\'', '\\', ' ', ':', '=']).len();
        at = after;
        if !rest[..between].contains([':', '=']) {
            continue;
        }
        kept.push_str(&rest[..between]);
        let value = &rest[between..];
        // "Bearer" is no secret; what comes after it is.
        let scheme = ["Bearer ", "Basic ", "AWS4-HMAC-SHA256 "].iter().find(|scheme| value.starts_with(**scheme));
        let skipped = scheme.map_or(0, |scheme| scheme.len());
        let length = value[skipped..].find(ends).unwrap_or(value.len() - skipped);
        // JSON's words are none.
        let length = if ["null", "true", "false"].contains(&&value[skipped..skipped + length]) { 0 } else { length };
        kept.push_str(&value[..skipped]);
        if length > 0 {
            kept.push_str(REMOVED);
        }
        at = after + between + skipped + length;
    }
    kept + &text[at..]
}

fn of_key(text: &str, start: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((head, tail)) = rest.split_once(start) {
        let length = tail.bytes().take_while(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit()).count();
        kept.push_str(head);
        kept.push_str(start);
        rest = if length >= KEY {
            kept.push_str(REMOVED);
            &tail[length..]
        } else {
            tail
        };
    }
    kept + rest
}

/// All before the last `@` of what looks like a URL.
fn of_urls(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((head, tail)) = rest.split_once("://") {
        kept.push_str(head);
        kept.push_str("://");
        let word = &tail[..tail.find(|c: char| c.is_whitespace() || c == '"').unwrap_or(tail.len())];
        rest = match word.rfind('@') {
            Some(at) => {
                kept.push_str(REMOVED);
                &tail[at..]
            }
            None => tail,
        };
    }
    kept + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_removed_and_little_else_is() {
        for (text, kept) in [
            ("see https://proxy.example:3128/x", "see https://proxy.example:3128/x"),
            ("http://user:p#a/5@proxy:3128/", "http://REMOVED@proxy:3128/"),
            (r#""https://u@h", "b""#, r#""https://REMOVED@h", "b""#),
            (
                "Encoded authorization failure message: aB3_x-y. Done",
                "Encoded authorization failure message: REMOVED Done",
            ),
            ("key AKIAIOSFODNN7EXAMPLE!", "key AKIAREMOVED!"),
            ("ASIA is a continent", "ASIA is a continent"),
            (r#"{"Authorization": "Bearer eyJ.a.b"}"#, r#"{"Authorization": "Bearer REMOVED"}"#),
            (r#"{\"SecretAccessKey\":\"abc/+=\"}"#, r#"{\"SecretAccessKey\":\"REMOVED\"}"#),
            ("AWS_SECRET_ACCESS_KEY=abc next", "AWS_SECRET_ACCESS_KEY=REMOVED next"),
            ("https://h/?Token=abc&x=1", "https://h/?Token=REMOVED&x=1"),
            (r#"{"password":null,"token":"enid-1-7"}"#, r#"{"password":null,"token":"enid-1-7"}"#),
            ("the token of the node is read", "the token of the node is read"),
        ] {
            assert_eq!(without(text), kept);
        }
    }
}
