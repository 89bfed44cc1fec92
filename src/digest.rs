//! Hashes as they are written down.

/// Digits of a short hash: 128 bits, enough to tell things apart that nobody forges.
const SHORT: usize = 32;

/// Bytes as lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The first 32 digits of [`hex`].
pub(crate) fn short_hex(bytes: &[u8]) -> String {
    let mut digits = hex(bytes);
    digits.truncate(SHORT);
    digits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_lower_case_and_padded() {
        assert_eq!(hex(&[0, 10, 255]), "000aff");
        assert_eq!(short_hex(&[7; 32]), "07".repeat(16));
        assert_eq!(short_hex(&[7]), "07");
    }
}
