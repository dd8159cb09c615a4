//! The spare frames that wait to be homed, oldest first: a list threaded through arrays.

const NONE: u32 = u32::MAX;

/// An ordered set of spare numbers with removal from the middle. 8 bytes a spare, fixed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct AgeList {
    /// For each spare its older and its younger neighbour; of one not listed, zeroes.
    links: Vec<(u32, u32)>,
    oldest: u32,
    youngest: u32,
}

impl AgeList {
    /// An empty list over `spares` spares.
    pub fn new(spares: u64) -> Self {
        Self { links: vec![(0, 0); spares as usize], oldest: NONE, youngest: NONE }
    }

    /// The oldest.
    pub fn oldest(&self) -> Option<u64> {
        (self.oldest != NONE).then_some(u64::from(self.oldest))
    }

    /// The next younger one after a listed spare.
    pub fn younger_than(&self, spare: u64) -> Option<u64> {
        let younger = self.links[spare as usize].1;
        (younger != NONE).then_some(u64::from(younger))
    }

    /// Lists a spare that is not listed, as the youngest.
    pub fn push_youngest(&mut self, spare: u64) {
        let spare = spare as u32;
        self.links[spare as usize] = (self.youngest, NONE);
        match self.youngest {
            NONE => self.oldest = spare,
            youngest => self.links[youngest as usize].1 = spare,
        }
        self.youngest = spare;
    }

    /// Lists a spare that is not listed, as the oldest.
    pub fn push_oldest(&mut self, spare: u64) {
        let spare = spare as u32;
        self.links[spare as usize] = (NONE, self.oldest);
        match self.oldest {
            NONE => self.youngest = spare,
            oldest => self.links[oldest as usize].0 = spare,
        }
        self.oldest = spare;
    }

    /// Takes a listed spare out.
    pub fn remove(&mut self, spare: u64) {
        let (older, younger) = std::mem::take(&mut self.links[spare as usize]);
        match older {
            NONE => self.oldest = younger,
            older => self.links[older as usize].1 = younger,
        }
        match younger {
            NONE => self.youngest = older,
            younger => self.links[younger as usize].0 = older,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(list: &AgeList) -> Vec<u64> {
        std::iter::successors(list.oldest(), |spare| list.younger_than(*spare)).collect()
    }

    #[test]
    fn keeps_order_over_removals() {
        let mut list = AgeList::new(5);
        for spare in [3, 1, 4] {
            list.push_youngest(spare);
        }
        list.push_oldest(0);
        assert_eq!(listed(&list), [0, 3, 1, 4]);
        list.remove(1);
        assert_eq!(listed(&list), [0, 3, 4]);
        list.remove(0);
        list.remove(4);
        list.push_youngest(2);
        assert_eq!(listed(&list), [3, 2]);
        list.remove(3);
        list.remove(2);
        assert!(listed(&list).is_empty());
        list.push_oldest(1);
        assert_eq!(listed(&list), [1]);
    }
}
