//! What a restore would give, computed from files without writing any.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use litestream::ltx::Decoder;
use litestream::types::TxidRange;

use crate::oracle::{digest_of, page_hash};

/// Hashes of the pages of one LTX file.
#[derive(Debug)]
pub(crate) struct Content {
    pub(crate) txids: TxidRange,
    page_size: u32,
    commit: u32,
    pages: Vec<(u32, u64)>,
}

/// Decodes a whole file, or says what is wrong with it.
pub(crate) fn decode(bytes: &[u8]) -> Result<Content, String> {
    let mut decoder = Decoder::new(bytes).map_err(|e| e.to_string())?;
    let header = *decoder.header();
    let mut page = vec![0; header.page_size.len()];
    let mut pages = Vec::new();
    while let Some(pgno) = decoder.next_page(&mut page).map_err(|e| e.to_string())? {
        pages.push((pgno.get(), page_hash(pgno.get() as usize, &page)));
    }
    Ok(Content { txids: header.txids, page_size: header.page_size.get(), commit: header.commit, pages })
}

/// Pages laid over each other.
#[derive(Debug, Clone, Default)]
pub(crate) struct Layers {
    page_size: u32,
    pages: BTreeMap<u32, u64>,
    commit: u32,
}

impl Layers {
    /// # Errors
    /// Says which rule the file breaks.
    pub(crate) fn add(&mut self, file: &Content) -> Result<(), String> {
        let full = file.pages.len() == file.commit as usize;
        if self.page_size != file.page_size {
            if !full {
                return Err(format!("{} has another page size but not all pages", file.txids));
            }
            self.pages.clear();
            self.page_size = file.page_size;
        }
        self.pages.retain(|pgno, _| *pgno <= file.commit);
        self.pages.extend(file.pages.iter().copied());
        self.commit = file.commit;
        if self.pages.len() != file.commit as usize {
            return Err(format!("{}: {} of {} pages are known", file.txids, self.pages.len(), file.commit));
        }
        Ok(())
    }

    pub(crate) fn digest(&self) -> u64 {
        digest_of(self.pages.values().copied().collect::<Vec<_>>().into_iter())
    }
}

/// Decoded files, by inode and version.
#[derive(Debug, Default)]
pub(crate) struct Cache(HashMap<(usize, u64), Rc<Content>>);

impl Cache {
    pub(crate) fn get(&mut self, ino: usize, version: u64, bytes: &[u8]) -> Result<Rc<Content>, String> {
        if let Some(content) = self.0.get(&(ino, version)) {
            return Ok(Rc::clone(content));
        }
        let content = Rc::new(decode(bytes)?);
        self.0.insert((ino, version), Rc::clone(&content));
        Ok(content)
    }
}
