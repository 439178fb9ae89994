//! What a call asks for, and whether its caller may ("Actions, resources, and condition keys for Amazon EC2", Service
//! Authorization Reference).

use std::collections::BTreeMap;

use super::{ACCOUNT, Access, ApiError, Model, Request, Role};

const REGION: &str = "us-east-1";

impl Model {
    /// There is this role from now on, in place of one of the same name.
    pub fn set_role(&mut self, role: Role) {
        self.identities.roles.insert(role.arn.clone(), role);
    }

    /// A new access key for whoever shows this token, and when it ends. `role`: its ARN; `None`: the role that takes the
    /// token. Error: nobody takes it.
    pub fn assume(&mut self, now: u64, role: Option<&str>, token: &str) -> Result<(String, u64), ApiError> {
        self.advance(now);
        let takes = |role: &&Role| role.tokens.is_empty() || role.tokens.iter().any(|known| known == token);
        let found = match role {
            Some(arn) => self.identities.roles.get(arn).filter(takes),
            None => self.identities.roles.values().find(takes),
        };
        let refused = || ApiError::new("InvalidIdentityToken", "The web identity token is not accepted for this role");
        let Role { arn, lifetime_ms, .. } = found.filter(|_| !token.is_empty()).ok_or_else(refused)?.clone();
        let (key, ends) = (format!("ASIA{:016X}", self.rng.u64(..)), self.now + lifetime_ms);
        self.identities.keys.insert(key.clone(), (arn, ends));
        Ok((key, ends))
    }

    /// An error unless the caller's key is good, and its role may do all that the call does. Other keys are an operator's.
    pub(super) fn authorize(&self, caller: &str, request: &Request) -> Result<(), ApiError> {
        let Some((arn, ends)) = self.identities.keys.get(caller) else { return Ok(()) };
        if *ends <= self.now {
            return Err(ApiError::new("RequestExpired", "Request has expired."));
        }
        let Some(policy) = self.identities.roles.get(arn).and_then(|role| role.policy.as_ref()) else { return Ok(()) };
        match self.accesses(request).into_iter().find(|access| !policy.allows(access)) {
            None => Ok(()),
            Some(Access { action, resource, .. }) => {
                let why = format!("because no identity-based policy allows the {action} action.");
                Err(self.denied(&format!(
                    "User: {arn} is not authorized to perform: {action} on resource: {resource} {why}"
                )))
            }
        }
    }

    /// A refusal for want of a right. What EC2 encodes behind its words is long, and another text each time.
    pub(super) fn denied(&self, why: &str) -> ApiError {
        let encoded = format!("Encoded authorization failure message: {:01024x}", self.now);
        let message = format!("You are not authorized to perform this operation. {why} {encoded}");
        ApiError::new("UnauthorizedOperation", message)
    }

    /// What a call does to which resources.
    pub fn accesses(&self, request: &Request) -> Vec<Access> {
        let action = format!("ec2:{}", request.action());
        let on = |resource: String, keys: Vec<(String, String)>| Access {
            action: action.clone(),
            resource,
            keys: keys.into_iter().collect(),
        };
        let eni = |id: &str| {
            on(arn("network-interface", id), tags("aws:ResourceTag", self.enis.get(id).map(|eni| &eni.tags)))
        };
        let instance =
            |id: &str| on(arn("instance", id), tags("aws:ResourceTag", self.instances.get(id).map(|it| &it.tags)));
        let groups =
            |ids: &[String]| ids.iter().map(|id| on(arn("security-group", id), Vec::new())).collect::<Vec<_>>();
        match request {
            Request::CreateNetworkInterface { subnet, groups: ids, tags: given, .. } => {
                let requested = tags("aws:RequestTag", Some(given));
                let mut all = vec![on(arn("network-interface", "*"), requested.clone())];
                let vpc = self.subnets.get(subnet).map(|subnet| arn("vpc", &subnet.vpc));
                all.push(on(arn("subnet", subnet), vpc.map(|vpc| ("ec2:Vpc".to_owned(), vpc)).into_iter().collect()));
                all.extend(groups(ids));
                if !given.is_empty() {
                    // Tags that travel in a create need a right of their own ("Grant permission to tag during creation").
                    let created_by = ("ec2:CreateAction".to_owned(), request.action().to_owned());
                    let mut access = on(arn("network-interface", "*"), [requested, vec![created_by]].concat());
                    access.action = "ec2:CreateTags".to_owned();
                    all.push(access);
                }
                all
            }
            Request::AttachNetworkInterface { eni: id, instance: of, .. } => vec![eni(id), instance(of)],
            Request::DetachNetworkInterface { attachment, .. } => {
                let holds =
                    |attached: &&super::EniTruth| attached.attachment.as_ref().is_some_and(|it| it.id == *attachment);
                let found = self.enis.values().find(holds);
                let of = found.and_then(|eni| eni.instance()).unwrap_or_default();
                vec![eni(found.map_or("", |eni| eni.id.as_str())), instance(of)]
            }
            Request::ModifyNetworkInterfaceAttribute { eni: id, attachment, groups: ids, .. } => {
                let of = attachment.as_ref().and_then(|_| self.enis.get(id)?.instance());
                let all = [eni(id)].into_iter().chain(of.map(instance));
                all.chain(groups(ids.as_deref().unwrap_or_default())).collect()
            }
            Request::DeleteNetworkInterface { eni: id }
            | Request::AssignPrivateIpAddresses { eni: id, .. }
            | Request::UnassignPrivateIpAddresses { eni: id, .. }
            | Request::AssignIpv6Addresses { eni: id, .. }
            | Request::UnassignIpv6Addresses { eni: id, .. } => vec![eni(id)],
            Request::CreateTags { resources, tags: given } => {
                let with_request = |id: &String| {
                    let mut access = eni(id);
                    access.keys.extend(tags("aws:RequestTag", Some(given)));
                    access
                };
                resources.iter().map(with_request).collect()
            }
            Request::DescribeNetworkInterfaces { .. }
            | Request::DescribeSubnets { .. }
            | Request::DescribeInstances { .. }
            | Request::DescribeInstanceTypes { .. } => vec![on("*".to_owned(), Vec::new())],
        }
    }
}

fn arn(kind: &str, id: &str) -> String {
    format!("arn:aws:ec2:{REGION}:{ACCOUNT}:{kind}/{id}")
}

fn tags(prefix: &str, tags: Option<&BTreeMap<String, String>>) -> Vec<(String, String)> {
    tags.into_iter().flatten().map(|(key, value)| (format!("{prefix}/{key}"), value.clone())).collect()
}
