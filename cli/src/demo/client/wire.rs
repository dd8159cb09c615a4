//! The lines that client and guest exchange; the guest's side is `guest-workload/src/server.rs`.

/// The guest's answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Which client.
    pub client: u64,
    /// Which of its requests, from 1.
    pub number: u64,
    /// The guest's counter, this request included.
    pub counter: u64,
}

/// What the guest knows of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Which client.
    pub client: u64,
    /// Its last request that was counted.
    pub last: u64,
    /// The guest's counter.
    pub counter: u64,
    /// Requests that came a second time.
    pub duplicates: u64,
}

/// A request to count.
pub fn request(client: u64, number: u64) -> String {
    format!("+ {client} {number}\n")
}

/// A question that counts nothing.
pub fn question(client: u64) -> String {
    format!("? {client}\n")
}

fn numbers<const N: usize>(line: &str) -> Option<[u64; N]> {
    let mut words = line.split(' ');
    let mut numbers = [0; N];
    for number in &mut numbers {
        *number = words.next()?.parse().ok()?;
    }
    words.next().is_none().then_some(numbers)
}

impl Answer {
    /// From a line without its end.
    pub fn parse(line: &str) -> Option<Self> {
        let [client, number, counter] = numbers(line)?;
        Some(Self { client, number, counter })
    }
}

impl Record {
    /// From a line without its end.
    pub fn parse(line: &str) -> Option<Self> {
        let [client, last, counter, duplicates] = numbers(line)?;
        Some(Self { client, last, counter, duplicates })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_and_records_are_told_apart_and_nonsense_from_both() {
        assert_eq!(Answer::parse("7 8 9"), Some(Answer { client: 7, number: 8, counter: 9 }));
        assert_eq!(Record::parse("7 8 9 1"), Some(Record { client: 7, last: 8, counter: 9, duplicates: 1 }));
        for line in ["", "7 8", "7 8 x", "7 8 9 1", "7  8 9", "-7 8 9", "99999999999999999999 1 1"] {
            assert_eq!(Answer::parse(line), None, "{line}");
        }
        assert_eq!(Record::parse("7 8 9"), None);
    }
}
