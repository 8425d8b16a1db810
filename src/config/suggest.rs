//! Which known name somebody meant.

/// The known name nearest to `written`, if it is near enough to have been meant: about one slip in three letters.
pub(super) fn nearest<'a>(written: &str, known: &[&'a str]) -> Option<&'a str> {
    let written: Vec<char> = written.to_lowercase().chars().collect();
    known
        .iter()
        .map(|name| {
            let letters: Vec<char> = name.chars().collect();
            // Far apart in length is far apart; this also bounds the work.
            let near = letters.len().abs_diff(written.len()) <= 3;
            let slips = if near { distance(&written, &letters) } else { usize::MAX };
            (slips, (letters.len() / 3).max(1), *name)
        })
        .filter(|(slips, allowed, _)| slips <= allowed)
        .min_by_key(|(slips, ..)| *slips)
        .map(|(.., name)| name)
}

/// How many letters have to be put in, left out, replaced or swapped with their neighbour.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let mut best = (last[j] + usize::from(x != y)).min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *x == b[j - 1] && a[i - 1] == *y {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips() {
        let known = ["address", "max_clients", "idle_timeout", "url"];
        for (written, meant) in [
            ("adress", Some("address")),
            ("adderss", Some("address")),
            ("Address", Some("address")),
            ("addresses", Some("address")),
            ("maxclients", Some("max_clients")),
            ("max-clients", Some("max_clients")),
            ("idle_timeot", Some("idle_timeout")),
            ("urls", Some("url")),
            ("uri", Some("url")),
            ("", None),
            ("port", None),
            ("coalesce", None),
        ] {
            assert_eq!(nearest(written, &known), meant, "{written}");
        }
    }
}
