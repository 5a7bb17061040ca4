//! Byte sizes with a unit (`spec: config` §3.2).

/// `5MiB`, `10 MB`, `1,000`: plain units are powers of 1000, `i` units powers of 1024; fractions of
/// a byte are cut off.
///
/// # Errors
/// The reference's texts.
pub(super) fn parse_byte_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    if text.is_empty() {
        return Err("empty size string".to_owned());
    }
    let digits = text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | ','))).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number = number.replace(',', "");
    let value: f64 = match number.parse() {
        Ok(value) if !number.is_empty() => value,
        _ => return Err(format!("invalid size format: strconv.ParseFloat: parsing {number:?}: invalid syntax")),
    };
    let unit = unit.trim().to_lowercase();
    let (letter, base) = match unit.as_str() {
        "" | "b" => ("", 1000_f64),
        other => match other.strip_suffix("ib").or_else(|| other.strip_suffix('i')) {
            Some(letter) => (letter, 1024.0),
            None => (other.strip_suffix('b').unwrap_or(other), 1000.0),
        },
    };
    let power = match letter {
        "" if unit.is_empty() || unit == "b" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        "e" => 6,
        _ => return Err(format!("invalid size format: unhandled size name: {unit}")),
    };
    let bytes = value * base.powi(power);
    if bytes >= 18_446_744_073_709_551_616.0 {
        return Err(format!("invalid size format: too large: {text}"));
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "in range and not negative: checked above"
    )]
    let bytes = bytes as u64;
    if i64::try_from(bytes).is_err() {
        return Err(format!("size {bytes} exceeds maximum allowed value ({})", i64::MAX));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_units_count_in_thousands_and_i_units_in_1024() {
        for (text, bytes) in [
            ("5MB", 5_000_000),
            ("5MiB", 5 << 20),
            (" 5 mib ", 5 << 20),
            ("5Mi", 5 << 20),
            ("1.5k", 1500),
            ("1,024", 1024),
            ("10b", 10),
            ("0.9", 0),
        ] {
            assert_eq!(parse_byte_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn refusals_read_as_in_the_reference() {
        let parse_error = "invalid size format: strconv.ParseFloat: parsing \"\": invalid syntax";
        for (text, message) in [
            ("", "empty size string"),
            ("big", parse_error),
            ("-5MB", parse_error),
            ("5XB", "invalid size format: unhandled size name: xb"),
            ("1e7", "invalid size format: unhandled size name: e7"),
            ("100EB", "invalid size format: too large: 100EB"),
            ("10000000000000000000", "size 10000000000000000000 exceeds maximum allowed value (9223372036854775807)"),
        ] {
            assert_eq!(parse_byte_size(text), Err(message.to_owned()), "{text}");
        }
    }
}
