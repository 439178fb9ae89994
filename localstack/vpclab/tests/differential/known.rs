//! Where LocalStack, as `localstack/launch.py` starts it, is known to be off.
//!
//! "Reference" is the Amazon EC2 API Reference, page of the action; "codes" is its page "Error codes for the
//! Amazon EC2 API".

/// One difference.
pub struct Known {
    /// What was asked, as the story calls it.
    pub at: &'static str,
    /// What LocalStack does, and how we know that EC2 does not.
    pub why: &'static str,
}

const fn known(at: &'static str, why: &'static str) -> Known {
    Known { at, why }
}

const NO_PREFIXES: &str = "prefixes are ignored; reference: Ipv4PrefixCount";
const ALL_ADDRESSES: &str = "assigning answers with all addresses of the ENI; reference: the ones assigned";
const NO_TERMINATION: &str = "deleteOnTermination is ignored; User Guide: \"Delete on termination\"";
const NO_TOKEN: &str = "client tokens are ignored; User Guide: \"Ensuring idempotency\"";
const NO_PAGES: &str = "page sizes are ignored; reference: 5 to 1000, not together with ids";
const NO_LIMITS: &str = "instance types have no limits; User Guide: \"IP addresses per network interface\"";
/// LocalStack itself draws addresses without looking, so its subnets never fill at all.
const MENDED_DRAW: &str =
    "localstack/launch.py leaves out sixteen addresses and then fails; codes: InsufficientFreeAddressesInSubnet";
const TERMINATED: &str = "a terminated instance keeps its ENIs; User Guide: \"Delete on termination\"";

/// All of them.
pub const KNOWN: &[Known] = &[
    known("action: unknown", "an unknown action is an InternalError; codes: InvalidAction"),
    known("assign: answered first", ALL_ADDRESSES),
    known("assign: answered second", ALL_ADDRESSES),
    known("assign: address outside the subnet", "any address can be assigned; reference: from the subnet's range"),
    known("assign: prefixes", NO_PREFIXES),
    known("attach: an attached ENI", "an attached ENI is attached again; codes: InvalidNetworkInterface.InUse"),
    known("create tags: unknown", "whatever is not there is tagged; codes: InvalidNetworkInterfaceID.NotFound"),
    known("create: prefixes", NO_PREFIXES),
    known("create: prefixes and addresses", NO_PREFIXES),
    known("create: proper MAC", "MACs are malformed, like 02:00:00:18902x:7902x:23602x"),
    known("create: status", "a new ENI is available at once; reference: pending in the example's answer"),
    known("delete: attached", "an attached ENI is deleted; gruntwork-io/cloud-nuke issue 431 has EC2's answer"),
    known("filter: unknown", "an unknown filter is an InternalFailure; codes: InvalidParameterValue"),
    known("full: a prefix", NO_PREFIXES),
    known("full: created", MENDED_DRAW),
    known("full: free at last", MENDED_DRAW),
    known("full: one more", MENDED_DRAW),
    known("limits: eleventh address", NO_LIMITS),
    known("limits: fourth ENI", NO_LIMITS),
    known(
        "limits: used index",
        "a used device index is used again; hashicorp/terraform-provider-aws pull request 906 has EC2's answer",
    ),
    known("modify: deleteOnTermination", NO_TERMINATION),
    known("modify: nothing", "a call without an attribute succeeds; codes: InvalidParameterCombination"),
    known("pages: of five", NO_PAGES),
    known("pages: of four", NO_PAGES),
    known("pages: with ids", NO_PAGES),
    known("primary: deleteOnTermination", NO_TERMINATION),
    known("terminate: ENI with deleteOnTermination", TERMINATED),
    known("terminate: ENI without deleteOnTermination", TERMINATED),
    known("terminate: primary ENI", TERMINATED),
    known("token: other parameters", NO_TOKEN),
    known("token: same ENI", NO_TOKEN),
    known("unassign: the primary address", "a primary address is unassigned; reference: secondary addresses"),
    known(
        "unassign: what it has not",
        "an address that is not there is unassigned; CNI plugins take EC2's InvalidParameterValue for \"gone already\"",
    ),
];
