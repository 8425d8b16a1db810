//! Sizes as they are written: `"100"`, `"64kb"`, `"256mb"`, `"1gb"`, as in redis.conf.

use super::secret::shown;

/// Reads a size in bytes: a whole number, and a unit (`kb`, `mb`, `gb`; powers of 1024) unless it is bytes.
///
/// # Errors
/// What is wrong and what to write instead.
pub fn parse_size(text: &str) -> Result<usize, String> {
    let wrong = || {
        let text = shown(text);
        format!("{text} is not a size; write a whole number with kb, mb or gb, such as \"256mb\"")
    };
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let bytes: usize = match unit {
        "" => 1,
        "kb" => 1 << 10,
        "mb" => 1 << 20,
        "gb" => 1 << 30,
        _ => return Err(wrong()),
    };
    if number.is_empty() {
        return Err(wrong());
    }
    let size = number.parse::<usize>().ok().and_then(|n| n.checked_mul(bytes));
    size.filter(|size| *size <= isize::MAX as usize)
        .ok_or_else(|| format!("{} is too large; write a smaller one, such as \"1gb\"", shown(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        for (text, bytes) in [("0", 0), ("100", 100), ("64kb", 65536), ("256mb", 256 << 20), ("1gb", 1 << 30)]
        {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn mistakes() {
        for text in ["", "kb", "-1", "+1", "1 mb", "1MB", "1k", "1.5mb", "1tb", "mb1"] {
            let error = parse_size(text).unwrap_err();
            assert!(error.contains("is not a size; write"), "{text}: {error}");
        }
        for text in ["99999999999999999999", "9999999999gb", "9223372036854775808"] {
            assert!(parse_size(text).unwrap_err().contains("too large"), "{text}");
        }
    }
}
