//! What an instance type can carry: from EC2, kept on disk; a small table for a first boot without EC2.

use enid_ipamd::Limits;

/// (type, ENIs, IPv4 addresses per ENI), from the Amazon EC2 User Guide, "IP addresses per network
/// interface per instance type". Only common types: EC2 knows the rest.
const TABLE: [(&str, u32, u32); 16] = [
    ("t3.nano", 2, 2),
    ("t3.micro", 2, 2),
    ("t3.small", 3, 4),
    ("t3.medium", 3, 6),
    ("t3.large", 3, 12),
    ("t3.xlarge", 4, 15),
    ("m5.large", 3, 10),
    ("m5.xlarge", 4, 15),
    ("m5.2xlarge", 4, 15),
    ("m5.4xlarge", 8, 30),
    ("c5.large", 3, 10),
    ("c5.xlarge", 4, 15),
    ("c5.4xlarge", 8, 30),
    ("r5.large", 3, 10),
    ("m6i.large", 3, 10),
    ("m6i.xlarge", 4, 15),
];

/// The built-in figure for a type.
pub fn built_in(kind: &str) -> Option<Limits> {
    let (_, enis, addresses_per_eni) = *TABLE.iter().find(|(name, ..)| *name == kind)?;
    // All of the table are Nitro types but the oldest.
    Some(Limits::of_one_card(enis, addresses_per_eni, true))
}
