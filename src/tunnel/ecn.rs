//! Explicit congestion notification through tunnels (RFC 6040).

/// The two ECN bits of a TOS byte or traffic class.
pub const MASK: u8 = 0x03;
const NOT_ECT: u8 = 0;
const ECT1: u8 = 1;
const ECT0: u8 = 2;
const CE: u8 = 3;

/// The ECN bits of the outer header (RFC 6040 section 4.1, normal mode): those of the inner one. The kernel sends
/// ECT(0) for an inner CE (RFC 3168 full functionality); ours follows the newer RFC.
#[inline]
pub fn encapsulate(inner_tos: u8) -> u8 {
    inner_tos & MASK
}

/// The same as the kernel's tunnels have it: CE goes out as ECT(0) (`INET_ECN_encapsulate`).
#[inline]
pub fn encapsulate_as_kernel(inner_tos: u8) -> u8 {
    match inner_tos & MASK {
        CE => ECT0,
        ecn => ecn,
    }
}

/// The inner TOS byte after decapsulation (RFC 6040 section 4.2, figure 4), or `None` where the packet must be dropped:
/// congestion was experienced, and the inner packet has no way to say so.
#[inline]
pub fn decapsulate(outer_tos: u8, inner_tos: u8) -> Option<u8> {
    let ecn = match (inner_tos & MASK, outer_tos & MASK) {
        (NOT_ECT, CE) => return None,
        (NOT_ECT, _) => NOT_ECT,
        (_, CE) => CE,
        (ECT0, ECT1) => ECT1,
        (inner, _) => inner,
    };
    Some(inner_tos & !MASK | ecn)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ecn_2_all_sixteen_rows_of_rfc_6040() {
        // Rows: inner Not-ECT, ECT(0), ECT(1), CE. Columns: outer Not-ECT, ECT(0), ECT(1), CE. As in figure 4.
        let order = [NOT_ECT, ECT0, ECT1, CE];
        let expected = [
            [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None],
            [Some(ECT0), Some(ECT0), Some(ECT1), Some(CE)],
            [Some(ECT1), Some(ECT1), Some(ECT1), Some(CE)],
            [Some(CE), Some(CE), Some(CE), Some(CE)],
        ];
        for (row, inner) in order.into_iter().enumerate() {
            for (column, outer) in order.into_iter().enumerate() {
                // The DSCP bits of the inner packet stay, those of the outer one are dropped.
                let got = decapsulate(0x50 | outer, 0xa8 | inner);
                assert_eq!(got, expected[row][column].map(|ecn| 0xa8 | ecn));
            }
        }
    }

    #[test]
    fn ecn_1_encapsulation_copies_all_four() {
        for ecn in 0..4 {
            assert_eq!(encapsulate(0xa8 | ecn), ecn);
        }
    }
}
