//! What is taken out of a text before it leaves the node: passwords in URLs, access keys, session tokens, and what EC2 encodes of
//! the role's policy in a refusal ("Encoded authorization failure message").

/// In place of what was taken out.
const REMOVED: &str = "REMOVED";
/// What is followed by a secret, up to the next character that cannot be of it.
const BEFORE: [&str; 6] = [
    "Encoded authorization failure message: ",
    "Bearer ",
    "X-Amz-Security-Token=",
    "X-Amz-Signature=",
    "aws_secret_access_key=",
    "aws_session_token=",
];
/// How ids of access keys begin ("IAM identifiers" in the IAM User Guide).
const KEYS: [&str; 2] = ["AKIA", "ASIA"];
/// What follows in one, at least.
const KEY: usize = 12;

/// The text without them. The same secret becomes the same everywhere, so that a recording is still replayed.
pub fn without(text: &str) -> String {
    let mut text = BEFORE.iter().fold(text.to_owned(), |text, before| cut(&text, before, is_of_token, 1));
    for key in KEYS {
        text = cut(&text, key, |byte| byte.is_ascii_uppercase() || byte.is_ascii_digit(), KEY);
    }
    of_urls(&text)
}

fn is_of_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_+/=.%~".contains(&byte)
}

/// Replaces what follows `before`, if it is at least so long.
fn cut(text: &str, before: &str, is_of: impl Fn(u8) -> bool, least: usize) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((head, tail)) = rest.split_once(before) {
        let length = tail.bytes().take_while(|byte| is_of(*byte)).count();
        kept.push_str(head);
        kept.push_str(before);
        if length >= least {
            kept.push_str(REMOVED);
            rest = &tail[length..];
        } else {
            rest = tail;
        }
    }
    kept + rest
}

/// Replaces user and password of URLs.
fn of_urls(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((head, tail)) = rest.split_once("://") {
        kept.push_str(head);
        kept.push_str("://");
        let length = tail.bytes().take_while(|byte| is_of_token(*byte) || b":@!$&'()*,;".contains(byte)).count();
        let authority = &tail[..tail[..length].find('/').unwrap_or(length)];
        rest = match authority.rfind('@') {
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
    fn secrets_are_removed_and_nothing_else_is() {
        for (text, kept) in [
            ("see https://proxy.example:3128/x", "see https://proxy.example:3128/x"),
            ("http://user:pa55@proxy:3128/", "http://REMOVED@proxy:3128/"),
            ("\"https://a/b@c\", \"http://u@h\"", "\"https://a/b@c\", \"http://REMOVED@h\""),
            (
                "not authorized. Encoded authorization failure message: aB3_x-y. Done",
                "not authorized. Encoded authorization failure message: REMOVED Done",
            ),
            ("key AKIAIOSFODNN7EXAMPLE!", "key AKIAREMOVED!"),
            ("ASIA is a continent", "ASIA is a continent"),
            ("Authorization: Bearer eyJ.a.b\"", "Authorization: Bearer REMOVED\""),
        ] {
            assert_eq!(without(text), kept);
        }
    }
}
