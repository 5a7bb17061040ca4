//! Names of LTX files: `<min>-<max>.ltx`, 16 lower-case hex digits each.

use crate::types::{Txid, TxidRange};

/// The file name of a range.
#[must_use]
pub fn file_name(range: TxidRange) -> String {
    format!("{range}.ltx")
}

/// The range a file name stands for; `None` for every other name.
///
/// Also `None` for zero, a reversed range, and anything above [`Txid::MAX`]: such a file cannot
/// have been written by a database, and counting on from it would end in an overflow.
#[must_use]
pub fn parse_file_name(name: &str) -> Option<TxidRange> {
    let (min, max) = name.strip_suffix(".ltx")?.split_once('-')?;
    let (min, max) = (parse_txid(min)?, parse_txid(max)?);
    if max > Txid::MAX { None } else { TxidRange::new(min, max).ok() }
}

fn parse_txid(text: &str) -> Option<Txid> {
    let strict = text.len() == 16 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if strict { Txid::new(u64::from_str_radix(text, 16).ok()?) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_reads_back_as_the_range_it_was_made_from() {
        let range = TxidRange::new(Txid::new(1).unwrap(), Txid::new(0xabc).unwrap()).unwrap();
        assert_eq!(file_name(range), "0000000000000001-0000000000000abc.ltx");
        assert_eq!(parse_file_name(&file_name(range)), Some(range));
    }

    #[test]
    fn only_the_exact_form_is_a_name() {
        for bad in [
            "",
            ".ltx",
            "0000000000000001.ltx",
            "0000000000000001-0000000000000002",
            "0000000000000001-0000000000000002.ltx.tmp",
            "0000000000000001-0000000000000002.LTX",
            "0000000000000001-000000000000000A.ltx",
            "0000000000000001_0000000000000002.ltx",
            "000000000000001-00000000000000002.ltx",
            "+000000000000001-0000000000000002.ltx",
            " 000000000000001-0000000000000002.ltx",
            "0000000000000001-0000000000000002-3.ltx",
            "é00000000000001-0000000000000002.ltx",
        ] {
            assert_eq!(parse_file_name(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn impossible_ranges_are_not_names() {
        assert_eq!(parse_file_name("0000000000000000-0000000000000002.ltx"), None);
        assert_eq!(parse_file_name("0000000000000003-0000000000000002.ltx"), None);
        assert_eq!(parse_file_name("0000000000000001-ffffffffffffffff.ltx"), None);
        assert_eq!(parse_file_name("0000000000000001-8000000000000000.ltx"), None);
        assert!(parse_file_name("0000000000000001-7fffffffffffffff.ltx").is_some());
    }
}
