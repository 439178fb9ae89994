//! Numbers that the kernel and our table share: marks, device groups, priorities, table numbers.
//!
//! Marks touch bits 0x000000ff only, unless settings say otherwise. Others: kube-proxy 0xc000, portmap 0x2000, Calico
//! 0xffff0000.

/// Added to the slot, so that small hand-made marks of others never match.
const ENI_BASE: u32 = 0x40;
/// Bits that a slot and its base take.
const ENI_BITS: u32 = 7;
/// kube-proxy's bits (0x4000 to be masqueraded, 0x8000 to be dropped) and portmap's (0x2000): a packet that carries one
/// of them for us would be translated or dropped by them, and we would take theirs away.
const OF_OTHERS: u32 = 0xe000;

/// Bits of the packet mark that are ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    connmark: u32,
    eni_mask: u32,
}

impl Default for Marks {
    fn default() -> Self {
        Marks { connmark: 0x80, eni_mask: 0x7f }
    }
}

impl Marks {
    /// These bits, or what is wrong with them.
    pub fn new(connmark: u32, eni_mask: u32) -> Result<Self, &'static str> {
        Marks::check_eni_mask(eni_mask)?;
        if connmark == 0 || connmark & (eni_mask | OF_OTHERS) != 0 {
            return Err("bits of the mark, none of them of the ENIs' mask or of 0xe000, which are kube-proxy's and \
                        portmap's");
        }
        Ok(Marks { connmark, eni_mask })
    }

    /// What is wrong with bits that are to name ENIs, if anything is.
    pub fn check_eni_mask(eni_mask: u32) -> Result<(), &'static str> {
        let fits = is_an_eni_mask(eni_mask) && eni_mask & OF_OTHERS == 0;
        fits.then_some(()).ok_or(
            "seven bits side by side, such as 0x7f or 0x7f0000, none of them of 0xe000, which are kube-proxy's and \
             portmap's",
        )
    }

    /// Packet came in by the primary ENI; its answers leave there (the peer's AWS_VPC_K8S_CNI_CONNMARK).
    pub fn connmark(self) -> u32 {
        self.connmark
    }

    /// Bits of the mark that name an ENI.
    pub fn eni_mask(self) -> u32 {
        self.eni_mask
    }

    /// Mark of packets that must leave by the ENI of this slot.
    pub fn eni(self, slot: u32) -> u32 {
        (ENI_BASE + slot) << self.eni_mask.trailing_zeros()
    }

    /// Whether a rule's mark and mask name an ENI, by these settings or by earlier ones.
    pub(crate) fn names_an_eni(mark: u32, mask: u32) -> bool {
        is_an_eni_mask(mask) && mark & !mask == 0 && (mark >> mask.trailing_zeros()) & ENI_BASE != 0
    }
}

fn is_an_eni_mask(mask: u32) -> bool {
    // An empty one has 32 trailing zeros, which no shift can take.
    mask != 0 && mask >> mask.trailing_zeros() == (1 << ENI_BITS) - 1
}

/// Device group of the pods behind slot 0 ("en" in ASCII, shifted).
const GROUP_BASE: u32 = 0x656e_0000;
/// Slots 0…63: 0 is the primary ENI.
pub const SLOTS: u32 = 64;

/// Device group of the links that are being deleted together: none of an ENI's, so the table marks none of their packets
/// and they go by the host's own routes until the link is gone.
pub const GROUP_DELETED: u32 = GROUP_BASE + SLOTS;

/// Device group of the links that probe whether this host forwards: pods' routes, and no ENI's.
pub const GROUP_PROBE: u32 = GROUP_DELETED + 1;

/// Only routes over links of a non-default group, that is pods' veths: `lookup main suppress_ifgroup 0`.
pub const PRIORITY_PODS: u32 = 512;
/// `fwmark 0x80/0x80 lookup main suppress_prefixlength 0`, and behind it `lookup` the primary ENI's table.
pub const PRIORITY_CONNMARK: u32 = 1024;
/// `to` a destination that is asked of main `lookup main`, with the peer's number.
pub const PRIORITY_BY_MAIN: u32 = 1535;
/// `fwmark (0x40+n)/0x7f lookup` the table of ENI n. For the primary, n = 0, it is main, without its default route:
/// the host's networks behind other links are reached by it.
pub const PRIORITY_ENI: u32 = 1536;
/// Behind the two numbers before: what main's other routes left alone goes by the primary ENI's table.
pub const BEHIND: u32 = 1;
/// `from` an ENI's primary address `lookup` its table.
pub const PRIORITY_PRIMARY: u32 = 32765;
/// `not iif lo lookup` the primary ENI's table, behind main and default: where those have no default route, the kernel
/// would refuse what comes from outside for a pod, since no route leads back (rp_filter). The host's own packets, which
/// come from `lo`, do not match.
pub const PRIORITY_LAST: u32 = 32768;

/// Device group of the veths whose pods live on the ENI of this slot.
pub fn group(slot: u32) -> u32 {
    GROUP_BASE + slot
}

/// The slot that a device group names, if it is one of ours.
pub fn slot_of_group(group: u32) -> Option<u32> {
    group.checked_sub(GROUP_BASE).filter(|slot| *slot < SLOTS)
}

/// Whether links of this device group are pods': those that are being deleted among them.
pub fn is_of_a_pod(group: u32) -> bool {
    slot_of_group(group).is_some() || group == GROUP_DELETED
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
        let (usual, other) = (Marks::default(), Marks::new(0x80, 0x7f_0000).unwrap());
        for slot in 0..SLOTS {
            assert_eq!((usual.eni(slot) & !0x7f, other.eni(slot) & !0x7f_0000), (0, 0));
            assert!(slot == 0 || usual.eni(slot) >= 0x41);
            assert!(Marks::names_an_eni(usual.eni(slot), 0x7f) && Marks::names_an_eni(other.eni(slot), 0x7f_0000));
            assert_eq!(slot_of_group(group(slot)), Some(slot));
        }
        assert_eq!(slot_of_group(0), None);
        assert_eq!(slot_of_group(GROUP_DELETED), None);
    }

    #[test]
    fn nobody_else_uses_our_bits() {
        let usual = Marks::default();
        let ours = usual.connmark() | usual.eni_mask();
        // kube-proxy (masquerade, drop), portmap, Calico's default range, Cilium without the id of a cluster.
        for others in [0x4000, 0x8000, 0x2000, 0xffff_0000_u32, 0xffff_0f00] {
            assert_eq!(ours & others, 0, "{others:#x}");
        }
        // With it Cilium takes the low byte too: docs/compatibility.md says which setting keeps it from that.
        assert_ne!(ours & 0xffff_0fff, 0);
    }

    #[test]
    fn bits_that_cannot_be_ours_are_refused() {
        let of_ours = [(0x80, 0xff), (0x80, 0x3f), (0x80, 0xbf), (0x80, 0), (0, 0x7f), (0x40, 0x7f)];
        let of_others = [(0x80, 0x7f00), (0x80, 0xfe00), (0x80, 0x3f80), (0x4000, 0x7f), (0x2080, 0x7f)];
        for (connmark, mask) in of_ours.into_iter().chain(of_others) {
            assert!(Marks::new(connmark, mask).is_err(), "{connmark:#x} {mask:#x}");
        }
        assert!(Marks::new(1, 0xfe00_0000).is_ok());
        assert!(Marks::names_an_eni(0x4100, 0x7f00), "of earlier settings: its rule is taken back");
        assert!(!Marks::names_an_eni(0x1, 0x7f) && !Marks::names_an_eni(0x80, 0x80));
    }

    #[test]
    fn tables_are_the_peers() {
        assert_eq!((route_table(1, 0), route_table(2, 1)), (2, 10_102));
    }
}
