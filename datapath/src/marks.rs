//! Numbers that the kernel and our table share: marks, device groups, priorities, table numbers.
//!
//! Marks touch bits 0x000000ff only. Others: kube-proxy 0xc000, portmap 0x2000, Calico 0xffff0000.

/// Packet came in by the primary ENI; its answers leave there (the peer's AWS_VPC_K8S_CNI_CONNMARK default).
pub const CONNMARK: u32 = 0x80;
/// Bits of the mark that name an ENI.
pub const ENI_MASK: u32 = 0x7f;
/// Added to the slot, so that small hand-made marks of others never match.
const ENI_BASE: u32 = 0x40;
/// Device group of the pods behind slot 0 ("en" in ASCII, shifted).
const GROUP_BASE: u32 = 0x656e_0000;
/// Slots 0…63: 0 is the primary ENI.
pub const SLOTS: u32 = 64;

/// Device group of the links that are being deleted together: none of an ENI's, so the table lets none of their packets
/// through to the VPC.
pub const GROUP_GOING: u32 = GROUP_BASE + SLOTS;

/// Only routes over links of a non-default group, that is pods' veths: `lookup main suppress_ifgroup 0`.
pub const PRIORITY_PODS: u32 = 512;
/// `fwmark 0x80/0x80 lookup main`.
pub const PRIORITY_CONNMARK: u32 = 1024;
/// `fwmark (0x40+n)/0x7f lookup` the table of ENI n.
pub const PRIORITY_ENI: u32 = 1536;
/// `from` an ENI's primary address `lookup` its table.
pub const PRIORITY_PRIMARY: u32 = 32765;

/// Mark of packets that must leave by the ENI of this slot.
pub fn mark(slot: u32) -> u32 {
    ENI_BASE + slot
}

/// Device group of the veths whose pods live on the ENI of this slot.
pub fn group(slot: u32) -> u32 {
    GROUP_BASE + slot
}

/// The slot that a device group names, if it is one of ours.
pub fn slot_of_group(group: u32) -> Option<u32> {
    group.checked_sub(GROUP_BASE).filter(|slot| *slot < SLOTS)
}

/// Route table of a secondary ENI, with the peer's numbers: device + 1 on card 0, 10000 + 100·card + device elsewhere.
pub fn route_table(device_index: u32, card: u32) -> u32 {
    match card {
        0 => device_index + 1,
        _ => 10_000 + 100 * card + device_index,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_stay_within_our_byte_and_groups_read_back() {
        for slot in 0..SLOTS {
            assert_eq!(mark(slot) & !0x7f, 0);
            assert!(slot == 0 || mark(slot) >= 0x41);
            assert_eq!(slot_of_group(group(slot)), Some(slot));
        }
        assert_eq!(slot_of_group(0), None);
        assert_eq!(slot_of_group(GROUP_GOING), None);
    }

    #[test]
    fn tables_are_the_peers() {
        assert_eq!((route_table(1, 0), route_table(2, 1)), (2, 10_102));
    }
}
