//! The header of a GGUF file: metadata, and where each tensor lies.
//!
//! What is read here was written by others, so nothing is believed: every length is checked against the
//! bytes that are there before anything is allocated for it.

use std::collections::BTreeMap;

const MAGIC: &[u8] = b"GGUF";
/// Tensor data starts at a multiple of this, unless `general.alignment` says otherwise.
const DEFAULT_ALIGNMENT: u64 = 32;
/// ggml knows no tensor of more axes.
const MAX_AXES: u32 = 4;
/// Arrays of arrays are legal but unused; the limit keeps a crafted file from exhausting the stack.
const MAX_NESTING: usize = 4;

/// A metadata value. Integers of every width share a variant, and so do both widths of float.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// An integer of any width (a `u64` past `i64::MAX` wraps; no known key holds one).
    Int(i64),
    /// A float.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// A string; bytes that are not UTF-8 were replaced.
    Text(String),
    /// A list of values of one type.
    Array(Vec<Value>),
}

/// Where a tensor lies and how it is packed.
#[derive(Debug, Clone)]
pub(super) struct TensorInfo {
    /// Outermost axis first (the file says the innermost first).
    pub(super) shape: Vec<usize>,
    /// ggml's number of the format; named only when the tensor is read, so that an unknown format hurts
    /// nobody who does not ask for it.
    pub(super) format: u32,
    /// First byte, counted from the start of the file.
    pub(super) start: usize,
}

type Parsed = (BTreeMap<String, Value>, BTreeMap<String, TensorInfo>);

/// The metadata and the tensors of a file's `bytes`, or what is wrong with them.
pub(super) fn parse(bytes: &[u8]) -> Result<Parsed, String> {
    let mut reader = Reader { bytes, at: 0 };
    if reader.take(4)? != MAGIC {
        return Err("it does not begin as a GGUF file does".into());
    }
    let version = reader.u32()?;
    if !(2..=3).contains(&version) {
        return Err(format!("it is of GGUF version {version}; versions 2 and 3 (little-endian) are known"));
    }
    let (tensor_count, value_count) = (reader.u64()?, reader.u64()?);
    let mut metadata = BTreeMap::new();
    for _ in 0..value_count {
        let key = reader.text()?;
        let kind = reader.u32()?;
        metadata.insert(key, reader.value(kind, 0)?);
    }
    let mut tensors = BTreeMap::new();
    for _ in 0..tensor_count {
        let name = reader.text()?;
        let axes = reader.u32()?;
        if axes > MAX_AXES {
            return Err(format!("tensor {name} has {axes} axes, where at most {MAX_AXES} are possible"));
        }
        let mut shape = (0..axes).map(|_| reader.length()).collect::<Result<Vec<_>, _>>()?;
        shape.reverse();
        let format = reader.u32()?;
        let start = reader.length()?;
        tensors.insert(name, TensorInfo { shape, format, start });
    }
    let alignment = match metadata.get("general.alignment") {
        Some(Value::Int(n)) if *n > 0 => *n as u64,
        Some(_) => return Err("its general.alignment is not a positive number".into()),
        None => DEFAULT_ALIGNMENT,
    };
    let data = (reader.at as u64).checked_next_multiple_of(alignment).and_then(|n| usize::try_from(n).ok());
    for (name, info) in &mut tensors {
        info.start = data
            .and_then(|data| data.checked_add(info.start))
            .filter(|&start| start <= bytes.len())
            .ok_or_else(|| format!("tensor {name} begins past the end of the file: it is cut off"))?;
    }
    Ok((metadata, tensors))
}

/// A cursor that never runs past the end.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], String> {
        let taken = self.at.checked_add(length).and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or_else(|| format!("it ends at byte {} in the middle of its header", self.bytes.len()))?;
        self.at += length;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn length(&mut self) -> Result<usize, String> {
        usize::try_from(self.u64()?).map_err(|_| "it says a length that no file has".to_owned())
    }

    fn text(&mut self) -> Result<String, String> {
        let length = self.length()?;
        Ok(String::from_utf8_lossy(self.take(length)?).into_owned())
    }

    fn value(&mut self, kind: u32, depth: usize) -> Result<Value, String> {
        Ok(match kind {
            0 => Value::Int(u8::from_le_bytes(self.array()?).into()),
            1 => Value::Int(i8::from_le_bytes(self.array()?).into()),
            2 => Value::Int(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Int(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Int(self.u32()?.into()),
            5 => Value::Int(i32::from_le_bytes(self.array()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            7 => Value::Bool(self.array::<1>()? != [0]),
            8 => Value::Text(self.text()?),
            9 if depth < MAX_NESTING => {
                let (kind, length) = (self.u32()?, self.length()?);
                // Every element takes at least a byte, so that a length beyond the file fails before it
                // allocates.
                if length > self.bytes.len() - self.at {
                    return Err("a list in its header is longer than the file".into());
                }
                Value::Array((0..length).map(|_| self.value(kind, depth + 1)).collect::<Result<_, _>>()?)
            }
            9 => return Err("its header nests lists too deep".into()),
            10 => Value::Int(self.u64()? as i64),
            11 => Value::Int(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            other => return Err(format!("its header holds a value of the unknown type {other}")),
        })
    }
}
