//! Further columns of a table as metadata of its rows.

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float64Array, GenericListArray, Int64Array, LargeStringArray,
    OffsetSizeTrait, UInt64Array,
};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use arrow::error::ArrowError;
use serde_json::Value;

/// How deep lists may lie in lists.
const DEEPEST: usize = 4;

/// Whether a column of this type can be metadata: truth values, numbers, texts, dates and times (as text), and lists of these.
/// Structures, maps and bytes are left alone.
pub(super) fn is_metadata(kind: &DataType) -> bool {
    fn fits(kind: &DataType, depth: usize) -> bool {
        match kind {
            DataType::List(of) | DataType::LargeList(of) => depth > 0 && fits(of.data_type(), depth - 1),
            DataType::Dictionary(_, of) => target(of).is_some(),
            kind => target(kind).is_some(),
        }
    }
    fits(kind, DEEPEST)
}

/// What its values are cast to; `None` for what is not kept.
fn target(kind: &DataType) -> Option<DataType> {
    match kind {
        DataType::Boolean => Some(DataType::Boolean),
        DataType::UInt64 => Some(DataType::UInt64),
        kind if kind.is_integer() => Some(DataType::Int64),
        kind if kind.is_floating() => Some(DataType::Float64),
        DataType::Decimal32(..) | DataType::Decimal64(..) | DataType::Decimal128(..) | DataType::Decimal256(..) => {
            Some(DataType::Float64)
        }
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null => Some(DataType::LargeUtf8),
        DataType::Date32 | DataType::Date64 | DataType::Time32(_) | DataType::Time64(_) | DataType::Timestamp(..) => {
            Some(DataType::LargeUtf8)
        }
        _ => None,
    }
}

/// The values of a column that [`is_metadata`], one a row.
///
/// # Errors
/// What is wrong with one of them, such as a moment beyond all calendars.
pub(super) fn values(column: &ArrayRef) -> Result<Vec<Value>, ArrowError> {
    let kind = match column.data_type() {
        DataType::List(_) => return lists(column.as_list::<i32>()),
        DataType::LargeList(_) => return lists(column.as_list::<i64>()),
        DataType::Dictionary(_, of) => target(of),
        kind => target(kind),
    };
    let Some(kind) = kind else { return Ok(vec![Value::Null; column.len()]) };
    let column = match column.data_type() {
        // Arrow knows offsets here and no names of time zones (`UTC`); the moment is the same in any.
        DataType::Timestamp(unit, Some(_)) => &cast(column, &DataType::Timestamp(*unit, Some("+00:00".into())))?,
        _ => column,
    };
    let column = cast(column, &kind)?;
    let any = column.as_any();
    let value = |row: usize| -> Option<Value> {
        if column.is_null(row) {
            None
        } else if let Some(texts) = any.downcast_ref::<LargeStringArray>() {
            Some(texts.value(row).into())
        } else if let Some(numbers) = any.downcast_ref::<Int64Array>() {
            Some(numbers.value(row).into())
        } else if let Some(numbers) = any.downcast_ref::<UInt64Array>() {
            Some(numbers.value(row).into())
        } else if let Some(numbers) = any.downcast_ref::<Float64Array>() {
            // JSON has no other numbers: what is not finite is as good as absent.
            Some(numbers.value(row).into())
        } else {
            any.downcast_ref::<BooleanArray>().map(|truths| truths.value(row).into())
        }
    };
    Ok((0..column.len()).map(|row| value(row).unwrap_or(Value::Null)).collect())
}

/// The values of a column of lists.
fn lists<O: OffsetSizeTrait>(column: &GenericListArray<O>) -> Result<Vec<Value>, ArrowError> {
    column.iter().map(|list| list.map_or(Ok(Value::Null), |list| values(&list).map(Value::Array))).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Date32Array, DictionaryArray, Float32Array, ListArray, StructArray, TimestampSecondArray};
    use arrow::datatypes::{Int32Type, UInt8Type};
    use serde_json::json;

    use super::*;

    #[test]
    fn every_type_that_fits_becomes_what_json_has_for_it() {
        let of = |column: ArrayRef| {
            assert!(is_metadata(column.data_type()), "{}", column.data_type());
            Value::Array(values(&column).unwrap())
        };
        assert_eq!(of(Arc::new(BooleanArray::from(vec![Some(true), None]))), json!([true, null]));
        assert_eq!(of(Arc::new(UInt64Array::from(vec![u64::MAX]))), json!([u64::MAX]));
        assert_eq!(of(Arc::new(Float32Array::from(vec![0.5, f32::NAN]))), json!([0.5, null]));
        assert_eq!(of(Arc::new(Date32Array::from(vec![0, 20_000]))), json!(["1970-01-01", "2024-10-04"]));
        let moments = TimestampSecondArray::from(vec![0]);
        for zone in ["UTC", "Europe/Oslo", "+00:00"] {
            assert_eq!(of(Arc::new(moments.clone().with_timezone(zone))), json!(["1970-01-01T00:00:00Z"]), "{zone}");
        }
        let words: DictionaryArray<UInt8Type> = ["ice", "ice", "sea"].into_iter().collect();
        assert_eq!(of(Arc::new(words)), json!(["ice", "ice", "sea"]));
        let lists = ListArray::from_iter_primitive::<Int32Type, _, _>([Some(vec![Some(1), None]), None, Some(vec![])]);
        assert_eq!(of(Arc::new(lists)), json!([[1, null], null, []]));
        assert!(!is_metadata(StructArray::new_empty_fields(1, None).data_type()));
    }
}
