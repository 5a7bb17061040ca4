//! Several consecutive files become one: of each page the newest copy wins (`spec: ltx-format` §10).

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{Read, Write};

use super::decoder::Decoder;
use super::encoder::Encoder;
use super::header::{Header, Trailer, WalPos};
use crate::error::{Error, Result};
use crate::types::{Checksum, Pgno, TxidRange};

/// Merges files in ascending TXID order into one that covers all their transactions.
///
/// Every input is read to its end and verified before index and trailer are written; on an error
/// the output must be thrown away. Pages beyond the final size are dropped. A page that lay beyond
/// the end of the database at some point between its input and the last must have been written
/// again since: an old copy of it would be data SQLite has given up, so that is an error.
///
/// The output does not track database checksums. Memory: one page and one buffer per input.
///
/// # Errors
/// `Invalid` without any input; `Corrupt` when inputs do not fit together, are damaged, or when
/// pages are missing from a file that must hold all; errors of readers and writer.
pub fn merge<R: Read, W: Write>(inputs: Vec<Decoder<R>>, out: W) -> Result<(W, Header, Trailer)> {
    let header = merged_header(&inputs)?;
    merge_under(header, inputs, out)
}

/// A full image of one transaction as a snapshot `1..=n`: the same pages under another header.
///
/// # Errors
/// `Corrupt` if the file does not hold every page; else as [`merge`].
pub fn snapshot_of<R: Read, W: Write>(image: Decoder<R>, out: W) -> Result<(W, Header, Trailer)> {
    let inputs = vec![image];
    let header = merged_header(&inputs)?;
    let header = Header { txids: TxidRange::up_to(header.txids.max()), pre_apply: Checksum::NONE, ..header };
    merge_under(header, inputs, out)
}

fn merge_under<R: Read, W: Write>(header: Header, inputs: Vec<Decoder<R>>, out: W) -> Result<(W, Header, Trailer)> {
    let mut inputs = prepare(inputs);
    let mut encoder = Encoder::new(out, header)?;

    // Lowest page first; of equal pages the newest input's.
    let mut queue = BinaryHeap::with_capacity(inputs.len());
    for (n, input) in inputs.iter_mut().enumerate() {
        if let Some(pgno) = input.advance(n)? {
            queue.push((Reverse(pgno), n));
        }
    }
    let mut last = None;
    while let Some((Reverse(pgno), n)) = queue.pop() {
        let input = &mut inputs[n];
        if last != Some(pgno) && pgno.get() <= header.commit {
            input.check_age(pgno)?;
            match input.decoder.last_block() {
                // The block was just expanded to this very page: no need to compress it again.
                Some(block) => encoder.page_with_block(pgno, &input.page, block)?,
                None => encoder.page(pgno, &input.page)?,
            }
        }
        last = Some(pgno);
        if let Some(pgno) = input.advance(n)? {
            queue.push((Reverse(pgno), n));
        }
    }
    // All inputs have said `None`, so all are verified; of a tracking file's checksums the output
    // can keep none, and `finish` refuses them.
    let post_apply = inputs.last().and_then(|input| input.decoder.trailer()).map(|t| t.post_apply);
    let (out, trailer) = encoder.finish(post_apply.unwrap_or_default())?;
    Ok((out, header, trailer))
}

struct Input<R> {
    decoder: Decoder<R>,
    /// The page the decoder returned last.
    page: Vec<u8>,
    /// Smallest size, in pages, the database had in any later input.
    shrunk_to: u32,
}

impl<R: Read> Input<R> {
    fn advance(&mut self, n: usize) -> Result<Option<Pgno>> {
        self.decoder.next_page(&mut self.page).map_err(|e| {
            let txids = self.decoder.header().txids;
            e.context(format!("read input {n} ({txids})"))
        })
    }

    fn check_age(&self, pgno: Pgno) -> Result<()> {
        if pgno.get() <= self.shrunk_to {
            return Ok(());
        }
        let (txids, size) = (self.decoder.header().txids, self.shrunk_to);
        Err(Error::corrupt(format!(
            "page {pgno} of {txids} was not written again after the database had shrunk to {size} pages"
        ))
        .hint("a new snapshot of the database makes later files independent of this one"))
    }
}

/// The output's header, after checking that the inputs follow each other.
fn merged_header<R: Read>(inputs: &[Decoder<R>]) -> Result<Header> {
    let (Some(first), Some(last)) = (inputs.first(), inputs.last()) else {
        return Err(Error::invalid("at least one input file required"));
    };
    for (prev, next) in inputs.iter().zip(inputs.iter().skip(1)) {
        let (prev, next) = (prev.header(), next.header());
        if next.page_size != first.header().page_size {
            return Err(Error::corrupt(format!(
                "input files have mismatched page sizes: {} != {}",
                first.header().page_size,
                next.page_size
            )));
        }
        if !next.txids.extends(Some(prev.txids.max())) {
            let text = |h: &Header| format!("({},{})", h.txids.min(), h.txids.max());
            let (prev, next) = (text(prev), text(next));
            return Err(Error::corrupt(format!("non-contiguous transaction ids in input files: {prev} -> {next}")));
        }
    }
    let (first, last) = (first.header(), last.header());
    Ok(Header {
        no_checksum: true,
        page_size: first.page_size,
        commit: last.commit,
        txids: TxidRange::new(first.txids.min(), last.txids.max())?,
        timestamp: last.timestamp,
        pre_apply: first.pre_apply,
        wal: WalPos::default(),
        node_id: 0,
    })
}

fn prepare<R: Read>(decoders: Vec<Decoder<R>>) -> Vec<Input<R>> {
    let mut shrunk_to = u32::MAX;
    let mut inputs: Vec<Input<R>> = decoders
        .into_iter()
        .rev()
        .map(|decoder| {
            let page = vec![0; decoder.header().page_size.len()];
            let input = Input { page, shrunk_to, decoder };
            shrunk_to = shrunk_to.min(input.decoder.header().commit);
            input
        })
        .collect();
    inputs.reverse();
    inputs
}

#[cfg(test)]
mod tests {
    use super::super::testing::{file, header};
    use super::*;
    use crate::error::ErrorKind;
    use crate::types::PageSize;

    fn merged(files: &[Vec<u8>]) -> Result<(Header, Vec<(u32, u8)>)> {
        let inputs = files.iter().map(|bytes| Decoder::new(bytes.as_slice())).collect::<Result<Vec<_>>>()?;
        let (bytes, header, _) = merge(inputs, Vec::new())?;
        let mut decoder = Decoder::new(bytes.as_slice())?;
        assert_eq!(decoder.header(), &header);
        let (mut page, mut pages) = (vec![0; header.page_size.len()], Vec::new());
        while let Some(pgno) = decoder.next_page(&mut page)? {
            pages.push((pgno.get(), page[0]));
        }
        Ok((header, pages))
    }

    fn error_of(files: &[Vec<u8>]) -> String {
        let err = merged(files).unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Corrupt);
        err.to_string()
    }

    #[test]
    fn of_each_page_the_newest_copy_wins() {
        let (header, pages) = merged(&[
            file(header(3, 3, 5), &[(1, 3), (2, 3), (5, 3)]),
            file(header(4, 6, 6), &[(2, 4), (6, 4)]),
            file(header(7, 7, 6), &[(2, 7), (4, 7)]),
        ])
        .unwrap();
        assert_eq!(pages, [(1, 3), (2, 7), (4, 7), (5, 3), (6, 4)]);
        assert_eq!(header, super::super::testing::header(3, 7, 6));
    }

    #[test]
    fn the_output_keeps_no_place_in_the_wal() {
        let mut with_wal = header(3, 3, 1);
        with_wal.wal = WalPos { offset: 32, size: 536, salt1: 1, salt2: 2 };
        with_wal.node_id = 9;
        assert_eq!(merged(&[file(with_wal, &[(1, 1)])]).unwrap().0, header(3, 3, 1));
    }

    #[test]
    fn a_full_image_becomes_a_snapshot_and_nothing_else_does() {
        let decoder = |bytes: &[u8]| Decoder::new(bytes.to_vec().leak() as &[u8]).unwrap();
        let image = file(header(7, 7, 3), &[(1, 1), (2, 2), (3, 3)]);
        let (bytes, snapshot, _) = snapshot_of(decoder(&image), Vec::new()).unwrap();
        assert_eq!(snapshot, header(1, 7, 3));
        let (summary, ..) = super::super::verify(bytes.as_slice()).unwrap();
        assert_eq!(summary, snapshot);
        let part = file(header(7, 7, 3), &[(1, 1), (3, 3)]);
        assert_eq!(snapshot_of(decoder(&part), Vec::new()).unwrap_err().kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn overlapping_inputs_are_fine_but_gaps_and_repeats_are_not() {
        let f = |min, max| file(header(min, max, 9), &[(1, 1)]);
        assert!(merged(&[f(2, 5), f(4, 7)]).is_ok());
        assert_eq!(
            error_of(&[f(2, 5), f(7, 7)]),
            "non-contiguous transaction ids in input files: \
             (0000000000000002,0000000000000005) -> (0000000000000007,0000000000000007)"
        );
        assert!(error_of(&[f(2, 5), f(3, 5)]).starts_with("non-contiguous transaction ids"));
        assert!(error_of(&[f(2, 5), f(2, 4)]).starts_with("non-contiguous transaction ids"));
    }

    #[test]
    fn nothing_cannot_be_merged() {
        assert_eq!(merged(&[]).unwrap_err().kind(), ErrorKind::Invalid);
    }

    #[test]
    fn inputs_agree_on_the_page_size() {
        let other = Header { page_size: PageSize::new(1024).unwrap(), ..header(3, 3, 1) };
        assert_eq!(
            error_of(&[file(header(2, 2, 1), &[]), file(other, &[])]),
            "input files have mismatched page sizes: 512 != 1024"
        );
    }

    #[test]
    fn pages_beyond_the_final_size_are_dropped() {
        let (_, pages) =
            merged(&[file(header(2, 2, 9), &[(1, 1), (8, 1), (9, 1)]), file(header(3, 3, 8), &[(1, 2)])]).unwrap();
        assert_eq!(pages, [(1, 2), (8, 1)]);
    }

    #[test]
    fn a_page_from_before_a_shrink_is_never_used() {
        let before = file(header(2, 2, 9), &[(1, 2), (8, 2)]);
        let shrunk = file(header(3, 3, 5), &[(1, 3)]);
        let regrown = file(header(4, 4, 9), &[(1, 4), (6, 4), (7, 4), (8, 4), (9, 4)]);
        let (_, pages) = merged(&[before.clone(), shrunk.clone(), regrown]).unwrap();
        assert_eq!(pages, [(1, 4), (6, 4), (7, 4), (8, 4), (9, 4)]);

        let forgetful = file(header(4, 4, 9), &[(1, 4), (9, 4)]);
        let text = "page 8 of 0000000000000002-0000000000000002 \
                    was not written again after the database had shrunk to 5 pages";
        assert_eq!(error_of(&[before.clone(), shrunk.clone(), forgetful.clone()]), text);
        // Also when another file lies between.
        let between = file(header(4, 4, 7), &[(6, 4), (7, 4)]);
        let last = file(header(5, 5, 9), &[(1, 5)]);
        assert_eq!(error_of(&[before, shrunk, between, last]), text);
    }

    #[test]
    fn a_merge_from_the_first_transaction_on_holds_every_page() {
        let first = file(header(1, 1, 2), &[(1, 1), (2, 1)]);
        let grown = file(header(2, 2, 4), &[(4, 2)]);
        assert_eq!(error_of(&[first.clone(), grown]), "nonsequential page numbers in snapshot transaction: 2,4");
        let grown = file(header(2, 2, 3), &[(1, 2)]);
        assert_eq!(error_of(&[first, grown]), "snapshot transaction file ends with page number 2, commit size is 3");
    }
}
