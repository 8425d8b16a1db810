//! Durations as they are written: `"250ms"`, `"5s"`, `"2m"`, `"1h"`.

use std::time::Duration;

use super::secret::shown;

/// A year: more is a mistake, and would overflow when added to a clock.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// Reads a duration: a whole number and a unit (`ms`, `s`, `m`, `h`), at most a year (`8760h`).
///
/// # Errors
/// What is wrong and what to write instead.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || {
        let text = shown(text);
        format!("{text} is not a duration; write a whole number with ms, s, m or h, such as \"5s\"")
    };
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(unit_at);
    let milliseconds: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    if number.is_empty() {
        return Err(wrong());
    }
    let duration = number.parse::<u64>().ok().and_then(|n| n.checked_mul(milliseconds));
    duration
        .map(Duration::from_millis)
        .filter(|d| *d <= LONGEST)
        .ok_or_else(|| format!("{} is too long; write at most \"8760h\"", shown(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        for (text, milliseconds) in
            [("0s", 0), ("250ms", 250), ("5s", 5_000), ("2m", 120_000), ("1h", 3_600_000), ("007s", 7_000)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        assert_eq!(parse_duration("8760h"), Ok(LONGEST));
    }

    #[test]
    fn mistakes() {
        for text in ["", "5", "s", "-5s", "+5s", "5 s", " 5s", "5S", "5sec", "1.5s", "1m30s", "٣s", "5d"] {
            let error = parse_duration(text).unwrap_err();
            assert!(error.contains("is not a duration; write"), "{text}: {error}");
        }
        for text in ["8761h", "99999999999999999999s", "18446744073709551615h"] {
            assert!(parse_duration(text).unwrap_err().contains("too long"), "{text}");
        }
    }
}
