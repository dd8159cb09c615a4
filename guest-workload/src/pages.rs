//! Pages that check themselves: each word of a page follows from its index and version, and the
//! version each page must have is kept apart. A page that is lost, stale, torn or misplaced is
//! found by the next check.

/// Bytes of a page.
pub const PAGE_BYTES: usize = 4096;
const WORDS: usize = PAGE_BYTES / 8;

/// A page that is not what was written last.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which page.
    pub page: usize,
    /// The version written last.
    pub expected_version: u64,
    /// The index found in its first word.
    pub found_index: u64,
    /// The version found in its second word.
    pub found_version: u64,
    /// The first word that is wrong.
    pub word: usize,
}

#[derive(Clone)]
#[repr(C, align(4096))]
struct Page([u64; WORDS]);

/// The pages, the versions they must have, and where the check stands.
pub struct Pages {
    pages: Vec<Page>,
    versions: Vec<u64>,
    random: u64,
    check_at: usize,
    passes: u64,
}

impl Pages {
    /// `count` pages of version 1.
    ///
    /// # Panics
    /// If `count` is 0.
    pub fn filled(count: usize) -> Self {
        assert!(count > 0, "at least one page is needed");
        let mut pages = vec![Page([0; WORDS]); count];
        for (index, page) in pages.iter_mut().enumerate() {
            fill(page, index as u64, 1);
        }
        Self { pages, versions: vec![1; count], random: 0x9e37_79b9_7f4a_7c15, check_at: 0, passes: 0 }
    }

    /// Gives a random page its next version.
    pub fn rewrite_one(&mut self) {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let index = (self.random % self.pages.len() as u64) as usize;
        self.versions[index] += 1;
        fill(&mut self.pages[index], index as u64, self.versions[index]);
    }

    /// Checks the next page in order; a faulty one is reported and then filled anew, so that
    /// each fault counts once.
    pub fn check_next(&mut self) -> Option<Fault> {
        let index = self.check_at;
        self.check_at += 1;
        if self.check_at == self.pages.len() {
            self.check_at = 0;
            self.passes += 1;
        }
        let version = self.versions[index];
        let page = &mut self.pages[index];
        let word = (0..WORDS).find(|&word| page.0[word] != content(index as u64, version, word))?;
        let fault = Fault {
            page: index,
            expected_version: version,
            found_index: page.0[0],
            found_version: page.0[1],
            word,
        };
        fill(page, index as u64, version);
        Some(fault)
    }

    /// How often all pages have been checked.
    pub fn passes(&self) -> u64 {
        self.passes
    }
}

fn content(index: u64, version: u64, word: usize) -> u64 {
    match word {
        0 => index,
        1 => version,
        _ => (index ^ version.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(word as u64),
    }
}

fn fill(page: &mut Page, index: u64, version: u64) {
    for (word, value) in page.0.iter_mut().enumerate() {
        *value = content(index, version, word);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults_of_a_pass(pages: &mut Pages) -> Vec<Fault> {
        (0..pages.pages.len()).filter_map(|_| pages.check_next()).collect()
    }

    #[test]
    fn intact_pages_pass_after_many_rewrites() {
        let mut pages = Pages::filled(32);
        for _ in 0..1_000 {
            pages.rewrite_one();
        }
        assert_eq!(faults_of_a_pass(&mut pages), []);
        assert_eq!(pages.passes(), 1);
    }

    #[test]
    fn a_stale_page_a_torn_page_and_a_misplaced_page_are_found_once() {
        let mut pages = Pages::filled(8);
        let stale = pages.pages[3].clone();
        for _ in 0..200 {
            pages.rewrite_one();
        }
        pages.pages[3] = stale;
        pages.pages[4].0[511] ^= 1;
        pages.pages[5] = pages.pages[6].clone();
        let found: Vec<usize> = faults_of_a_pass(&mut pages).iter().map(|fault| fault.page).collect();
        assert_eq!(found, [3, 4, 5]);
        assert_eq!(faults_of_a_pass(&mut pages), []);
    }
}
