//! Stand-ins for what gives a pod the keys of a role: STS (AssumeRoleWithWebIdentity, for IRSA), and the EKS Pod Identity
//! agent's endpoint. Tokens are compared with those that the role is told; no signature is checked.

use std::time::{Duration, SystemTime};

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    super::{ApiError, Model},
    params::Params,
};
use crate::http::{HttpRequest, HttpResponse};

/// STS' name of the call.
const ASSUME: &str = "AssumeRoleWithWebIdentity";
const NAMESPACE: &str = "https://sts.amazonaws.com/doc/2011-06-15/";

/// Whether it is a call of STS.
pub(super) fn is_asked(request: &HttpRequest) -> bool {
    Params::read(&request.body).text("Action").as_deref() == Some(ASSUME)
}

/// AssumeRoleWithWebIdentity (AWS STS API Reference).
pub(super) fn assume(model: &mut Model, now: u64, request: &HttpRequest) -> HttpResponse {
    let mut params = Params::read(&request.body);
    let request_id = model.request_id();
    let asked = params.required("RoleArn").and_then(|role| Ok((role, params.required("WebIdentityToken")?)));
    let (status, body) = match asked.and_then(|(role, token)| model.assume(now, Some(&role), &token)) {
        Ok((key, ends)) => {
            let expiration = at(ends.saturating_sub(now));
            let body = format!(
                "<{ASSUME}Response xmlns=\"{NAMESPACE}\"><{ASSUME}Result><Credentials><AccessKeyId>{key}</AccessKeyId>\
                 <SecretAccessKey>secret</SecretAccessKey><SessionToken>session</SessionToken>\
                 <Expiration>{expiration}</Expiration></Credentials></{ASSUME}Result>\
                 <ResponseMetadata><RequestId>{request_id}</RequestId></ResponseMetadata></{ASSUME}Response>"
            );
            (200, body)
        }
        Err(ApiError { code, message, status }) => {
            let body = format!(
                "<ErrorResponse xmlns=\"{NAMESPACE}\"><Error><Type>Sender</Type><Code>{code}</Code>\
                 <Message>{message}</Message></Error><RequestId>{request_id}</RequestId></ErrorResponse>"
            );
            (status, body)
        }
    };
    HttpResponse { kind: "text/xml", body, ..HttpResponse::status(status) }
}

/// `GET /v1/credentials` of the agent ("Container credential provider", AWS SDKs and Tools Reference Guide): the pod's token
/// is its authorization.
pub(super) fn of_pod_identity(model: &mut Model, now: u64, request: &HttpRequest) -> HttpResponse {
    let token = request.header("authorization").unwrap_or_default();
    match model.assume(now, None, token) {
        Ok((key, ends)) => {
            let body = serde_json::json!({
                "AccessKeyId": key,
                "SecretAccessKey": "secret",
                "Token": "session",
                "AccountId": super::super::ACCOUNT,
                "Expiration": at(ends.saturating_sub(now)),
            });
            HttpResponse { kind: "application/json", body: body.to_string(), ..HttpResponse::status(200) }
        }
        Err(error) => HttpResponse { kind: "text/plain", body: error.message, ..HttpResponse::status(401) },
    }
}

/// The moment so many milliseconds from now.
fn at(in_ms: u64) -> String {
    let moment = OffsetDateTime::from(SystemTime::now() + Duration::from_millis(in_ms));
    moment.format(&Rfc3339).unwrap_or_default()
}
