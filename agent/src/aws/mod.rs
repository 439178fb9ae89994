//! AWS as this node sees it: EC2's API, the instance metadata service, the limits of instance types.

pub mod ec2;
pub mod errors;
pub mod imds;
pub mod limits;
