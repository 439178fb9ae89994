//! What EC2's errors mean for the node: the one place that knows their codes and sentences.

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_ec2::{
    error::{ProvideErrorMetadata, SdkError},
    operation::RequestId,
};
use enid_ipamd::{CallError, Cause, Fact};
use tracing::info;

/// Codes (Amazon EC2 API Reference, "Error codes for the Amazon EC2 API"; AWS General Reference, "Common errors"), sorted by
/// what can be done about them.
const CODES: [(Cause, &[&str]); 7] = [
    (Cause::Clock, &["RequestExpired", "RequestTimeTooSkewed"]),
    (Cause::SubnetFull, &["InsufficientFreeAddressesInSubnet"]),
    (Cause::NoPrefix, &["InsufficientCidrBlocks"]),
    (
        Cause::Throttled,
        &[
            "RequestLimitExceeded",
            "Throttling",
            "ThrottlingException",
            "ThrottledException",
            "RequestThrottled",
            "RequestThrottledException",
            "TooManyRequestsException",
            "EC2ThrottledException",
            "SlowDown",
        ],
    ),
    // What the instance type carries; other limits are the account's.
    (Cause::EniLimit, &["PrivateIpAddressLimitExceeded", "AttachmentLimitExceeded", "Ipv6AddressLimitExceeded"]),
    (
        Cause::Denied,
        &[
            "UnauthorizedOperation",
            "AuthFailure",
            "AccessDenied",
            "AccessDeniedException",
            "OptInRequired",
            "Blocked",
            "PendingVerification",
            "ExpiredToken",
            "ExpiredTokenException",
            "InvalidClientTokenId",
            "UnrecognizedClientException",
            "SignatureDoesNotMatch",
            "MissingAuthenticationToken",
        ],
    ),
    (
        Cause::Ec2Unreachable,
        &["InternalError", "InternalFailure", "ServiceUnavailable", "Unavailable", "ServerInternal"],
    ),
];

/// Sentences, in lower case, of errors whose code says less: EC2 says the same thing under several codes.
///
/// - InvalidParameterValue for AssignPrivateIpAddresses and CreateNetworkInterface in a subnet that is full or in pieces,
///   as users of Amazon's VPC CNI have reported it.
/// - The same with "does not have enough free", the sentence of the codes above.
/// - InvalidParameterValue for AssignPrivateIpAddresses beyond what the instance type carries ("Number of private addresses
///   will exceed limit").
const SENTENCES: [(&str, Cause); 6] = [
    ("not sufficient free ipv4 addresses or prefixes", Cause::NoPrefix),
    ("does not have enough free cidr blocks", Cause::NoPrefix),
    ("does not have enough free addresses", Cause::SubnetFull),
    ("insufficient free addresses", Cause::SubnetFull),
    ("number of private addresses will exceed limit", Cause::EniLimit),
    ("rate exceeded", Cause::Throttled),
];

/// Codes under which EC2 says various things: the sentence decides first.
const VAGUE: [&str; 3] = ["InvalidParameterValue", "InvalidParameterCombination", "InvalidRequest"];

/// What can be done about an error.
fn cause_of(code: &str, message: &str) -> Cause {
    // Some endpoints put who is to blame before the code (Amazon EC2 API Reference, "Error codes").
    let code = code.trim_start_matches("Client.").trim_start_matches("Server.");
    let message = message.to_lowercase();
    let by_sentence = || SENTENCES.iter().find(|(words, _)| message.contains(words)).map(|(_, cause)| *cause);
    let by_code = || CODES.iter().find(|(_, codes)| codes.contains(&code)).map(|(cause, _)| *cause);
    let known = if VAGUE.contains(&code) { by_sentence() } else { by_code().or_else(by_sentence) };
    known.unwrap_or(if code.ends_with("LimitExceeded") { Cause::AccountLimit } else { Cause::Ec2Error })
}

/// What a refusal tells of EC2's state.
fn fact_of(code: &str, message: &str) -> Fact {
    match code {
        // Security groups that were deleted, or are of another VPC ("Error codes for the Amazon EC2 API").
        "InvalidGroup.NotFound" | "InvalidSecurityGroupID.NotFound" | "InvalidGroupId.Malformed" => Fact::GroupGone,
        "IdempotentParameterMismatch" => Fact::OtherRequest,
        _ if code.ends_with(".NotFound") => Fact::NotFound,
        // As terraform-provider-aws reports it (pull request 906).
        "InvalidParameterValue" if message.contains("already has an interface attached at device index") => {
            Fact::PlaceTaken
        }
        _ => Fact::None,
    }
}

/// An error as the core takes it.
pub fn classify<E>(action: &str, error: SdkError<E>) -> CallError
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
    SdkError<E>: RequestId,
{
    let request_id = error.request_id().map(str::to_owned);
    let code = error.code().unwrap_or_default().to_owned();
    let said = error.message().unwrap_or_default().to_owned();
    let (plain, encoded) = without_encoded(&said);
    if let Some(encoded) = encoded {
        info!("{action}: {plain} (aws sts decode-authorization-message reads the rest: {encoded})");
    }
    let words = match &error {
        SdkError::ServiceError(_) => format!("{code}: {}", if plain.is_empty() { "no further words" } else { plain }),
        other => last_cause(other),
    };
    let cause = match &error {
        other if lacks_credentials(other) => Cause::NoCredentials,
        SdkError::ServiceError(answer) if answer.raw().status().is_server_error() && code.is_empty() => {
            Cause::Ec2Unreachable
        }
        SdkError::ServiceError(_) => cause_of(&code, &said),
        SdkError::TimeoutError(_) | SdkError::DispatchFailure(_) | SdkError::ResponseError(_) => Cause::Ec2Unreachable,
        _ => Cause::Ec2Error,
    };
    let fact = fact_of(&code, &said);
    let verb = match cause {
        Cause::NoCredentials => "was not sent, since there are no credentials",
        Cause::Ec2Unreachable => "got no answer",
        _ => "was refused",
    };
    CallError { cause, message: format!("{action} {verb}: {words}"), request_id, fact }
}

/// A message, and what EC2 adds for those who may decode it (Amazon EC2 API Reference, "UnauthorizedOperation"): some
/// hundred bytes, other ones each time. What is told again and again is told with the same words.
fn without_encoded(said: &str) -> (&str, Option<&str>) {
    match said.split_once("Encoded authorization failure message:") {
        Some((plain, encoded)) => (plain.trim_end(), Some(encoded.trim())),
        None => (said, None),
    }
}

/// An answer that lacks something.
pub fn odd(action: &str, what: &str) -> CallError {
    CallError {
        cause: Cause::Ec2Error,
        message: format!("{action} answered, but {what}"),
        request_id: None,
        fact: Fact::None,
    }
}

/// Whether the SDK found nothing to sign the call with. It wraps the provider's error, and a provider's timeout in words
/// alone.
fn lacks_credentials(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<CredentialsError>() || error.to_string().contains("identity resolver timed out") {
            return true;
        }
        next = error.source();
    }
    false
}

/// The innermost error is the one that says what happened: "Connection refused", not how it was passed on.
fn last_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kind: what is told of missing rights is too long for an event, and differs from call to call.
    #[test]
    fn what_ec2_encodes_is_no_part_of_the_words() {
        let said = "You are not authorized to perform this operation. Encoded authorization failure message: 4b2f";
        assert_eq!(without_encoded(said), ("You are not authorized to perform this operation.", Some("4b2f")));
        assert_eq!(without_encoded("Request limit exceeded."), ("Request limit exceeded.", None));
    }

    /// The kind: EC2 says one thing under several codes.
    #[test]
    fn codes_and_sentences_are_sorted_once() {
        let in_pieces = "There are not sufficient free Ipv4 addresses or prefixes in subnet 'subnet-1'";
        let rows = [
            ("InsufficientFreeAddressesInSubnet", "", Cause::SubnetFull),
            ("InsufficientCidrBlocks", "", Cause::NoPrefix),
            ("InvalidParameterValue", in_pieces, Cause::NoPrefix),
            ("InvalidParameterValue", "Number of private addresses will exceed limit.", Cause::EniLimit),
            ("InvalidParameterValue", "secondary-addresses", Cause::Ec2Error),
            ("RequestLimitExceeded", "", Cause::Throttled),
            ("Client.RequestLimitExceeded", "Request limit exceeded.", Cause::Throttled),
            ("UnauthorizedOperation", "", Cause::Denied),
            ("ExpiredToken", "", Cause::Denied),
            ("PrivateIpAddressLimitExceeded", "", Cause::EniLimit),
            ("AttachmentLimitExceeded", "", Cause::EniLimit),
            ("NetworkInterfaceLimitExceeded", "", Cause::AccountLimit),
            ("InternalError", "", Cause::Ec2Unreachable),
            ("Server.InternalError", "", Cause::Ec2Unreachable),
        ];
        for (code, message, cause) in rows {
            assert_eq!(cause_of(code, message), cause, "{code}: {message}");
        }
    }
}
