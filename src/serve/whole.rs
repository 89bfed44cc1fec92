//! Whole numbers in requests. To JSON and its schemas 3.0 is one, and some languages write 3 like that.

use serde::de::{Deserialize, Deserializer, Error};
use serde_json::Number;

/// Whole numbers up to here are exact as floats.
const EXACT: f64 = (1_u64 << f64::MANTISSA_DIGITS) as f64;

/// A number that has to be there.
pub(super) fn number<'de, D: Deserializer<'de>, T: TryFrom<u64>>(from: D) -> Result<T, D::Error> {
    whole(&Number::deserialize(from)?)
}

/// A number that may be left out.
pub(super) fn optional<'de, D: Deserializer<'de>, T: TryFrom<u64>>(from: D) -> Result<Option<T>, D::Error> {
    Option::<Number>::deserialize(from)?.map(|number| whole(&number)).transpose()
}

fn whole<T: TryFrom<u64>, E: Error>(number: &Number) -> Result<T, E> {
    let of_float = |float: f64| (float.fract() == 0.0 && (0.0..=EXACT).contains(&float)).then_some(float as u64);
    let whole = number.as_u64().or_else(|| number.as_f64().and_then(of_float));
    let refused = || E::custom(format_args!("{number} is not a whole number, or below 0, or too large"));
    whole.and_then(|whole| T::try_from(whole).ok()).ok_or_else(refused)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, from_value, json};

    #[derive(Debug, serde::Deserialize)]
    struct Request {
        #[serde(deserialize_with = "super::number")]
        k: usize,
        #[serde(default, deserialize_with = "super::optional")]
        n: Option<u32>,
    }

    fn read(request: Value) -> Result<(usize, Option<u32>), String> {
        from_value(request).map(|Request { k, n }| (k, n)).map_err(|e| e.to_string())
    }

    #[test]
    fn what_is_not_whole_or_too_large_is_refused() {
        for k in [json!(3.5), json!(-1), json!(-0.5), json!(1e300), json!("3"), json!(null)] {
            assert!(read(json!({ "k": k })).is_err(), "{k}");
        }
        assert!(read(json!({"k": 3, "n": 4_294_967_296_u64})).is_err());
        assert_eq!(read(json!({"k": 3.5})).unwrap_err(), "3.5 is not a whole number, or below 0, or too large");
    }

    #[test]
    fn an_optional_number_may_be_missing_or_null() {
        assert_eq!(read(json!({"k": 3})), Ok((3, None)));
        assert_eq!(read(json!({"k": 3, "n": null})), Ok((3, None)));
    }

    proptest! {
        #[test]
        fn a_number_is_itself_with_a_point_behind_it_or_without(k in 0..=1_usize << 53, n in any::<u32>()) {
            prop_assert_eq!(read(json!({"k": k, "n": n})), Ok((k, Some(n))));
            prop_assert_eq!(read(json!({"k": k as f64, "n": f64::from(n)})), Ok((k, Some(n))));
        }
    }
}
