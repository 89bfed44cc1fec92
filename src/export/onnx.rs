//! ONNX files written by hand: the dozen protobuf messages that a graph needs, and a builder over them.
//!
//! Field numbers are those of the public `onnx.proto`. Only what the exporters use is here; a graph is
//! never read back by this crate (ONNX Runtime does that).

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use half::f16;
use prost::Message;

use crate::error::{Error, Result};

/// ONNX's own operators at this version; MatMulNBits, GroupQueryAttention and their kin are in [`MICROSOFT`].
pub const OPSET: i64 = 21;
/// Domain of ONNX Runtime's contributed operators.
pub const MICROSOFT: &str = "com.microsoft";
/// Protobuf cannot hold 2 GiB: initializers of a larger model go to a file beside it.
const INLINE_LIMIT: usize = 1_900_000_000;
/// External data is aligned so that it can be memory-mapped.
const EXTERNAL_ALIGNMENT: usize = 4096;

/// Element types by their ONNX number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum DType {
    /// 32-bit float.
    F32 = 1,
    /// Unsigned byte.
    U8 = 2,
    /// Signed byte.
    I8 = 3,
    /// 32-bit integer.
    I32 = 6,
    /// 64-bit integer.
    I64 = 7,
    /// Boolean.
    Bool = 9,
    /// 16-bit float.
    F16 = 10,
}

/// One axis of an input or output: fixed, or named and free.
#[derive(Debug, Clone)]
pub enum Dim {
    /// Known length.
    Fixed(usize),
    /// Free length; equal names mean equal lengths.
    Free(&'static str),
}

/// The data of an initializer, in its element type.
#[derive(Debug, Clone)]
pub struct Initializer {
    /// Element type of `bytes`.
    pub dtype: DType,
    /// Shape; empty for a scalar.
    pub shape: Vec<usize>,
    /// Little-endian elements in row-major order.
    pub bytes: Vec<u8>,
}

impl Initializer {
    /// A float tensor stored as 32-bit floats.
    pub fn f32(shape: &[usize], data: &[f32]) -> Self {
        Self { dtype: DType::F32, shape: shape.to_vec(), bytes: bytemuck::cast_slice(data).to_vec() }
    }

    /// A float tensor stored as 16-bit floats (rounded to nearest).
    pub fn f16(shape: &[usize], data: &[f32]) -> Self {
        let halves: Vec<f16> = data.iter().map(|&x| f16::from_f32(x)).collect();
        Self { dtype: DType::F16, shape: shape.to_vec(), bytes: bytemuck::cast_slice(&halves).to_vec() }
    }

    /// 64-bit integers: shapes, axes, indices.
    pub fn i64(shape: &[usize], data: &[i64]) -> Self {
        Self { dtype: DType::I64, shape: shape.to_vec(), bytes: bytemuck::cast_slice(data).to_vec() }
    }

    /// 32-bit integers.
    pub fn i32(shape: &[usize], data: &[i32]) -> Self {
        Self { dtype: DType::I32, shape: shape.to_vec(), bytes: bytemuck::cast_slice(data).to_vec() }
    }

    /// Unsigned bytes: quantized weights.
    pub fn u8(shape: &[usize], data: Vec<u8>) -> Self {
        Self { dtype: DType::U8, shape: shape.to_vec(), bytes: data }
    }

    /// Signed bytes: quantized weights.
    pub fn i8(shape: &[usize], data: &[i8]) -> Self {
        Self { dtype: DType::I8, shape: shape.to_vec(), bytes: bytemuck::cast_slice(data).to_vec() }
    }
}

/// An attribute of a node.
#[derive(Debug, Clone)]
pub enum Attr {
    /// A float.
    Float(f32),
    /// An integer (also used for booleans and element types).
    Int(i64),
    /// A string.
    Str(String),
    /// A list of integers.
    Ints(Vec<i64>),
}

/// Builds one graph. Values are named by strings; [`GraphBuilder::op`] invents the name of its result.
#[derive(Debug, Default)]
pub struct GraphBuilder {
    graph: GraphProto,
    data: Vec<Initializer>,
    fresh: usize,
}

impl GraphBuilder {
    /// An empty graph of this name.
    pub fn new(name: &str) -> Self {
        Self { graph: GraphProto { name: name.to_owned(), ..Default::default() }, ..Default::default() }
    }

    /// Declare an input and return its name.
    pub fn input(&mut self, name: &str, dtype: DType, shape: &[Dim]) -> String {
        self.graph.input.push(value_info(name, dtype, shape));
        name.to_owned()
    }

    /// Declare that the value of this name is an output.
    pub fn output(&mut self, name: &str, dtype: DType, shape: &[Dim]) {
        self.graph.output.push(value_info(name, dtype, shape));
    }

    /// Add a constant and return its name.
    pub fn init(&mut self, name: &str, value: Initializer) -> String {
        self.graph.initializer.push(TensorProto {
            dims: value.shape.iter().map(|&d| d as i64).collect(),
            data_type: value.dtype as i32,
            name: name.to_owned(),
            ..Default::default()
        });
        self.data.push(value);
        name.to_owned()
    }

    /// Add a constant under an invented name.
    pub fn constant(&mut self, value: Initializer) -> String {
        let name = self.fresh_name("const");
        self.init(&name, value)
    }

    /// Add an ONNX operator with one output, under an invented name which is returned.
    pub fn op(&mut self, op: &str, inputs: &[&str], attrs: &[(&str, Attr)]) -> String {
        let out = self.fresh_name(op);
        self.node("", op, inputs, &[&out], attrs);
        out
    }

    /// Add one of ONNX Runtime's contributed operators with one output.
    pub fn ms_op(&mut self, op: &str, inputs: &[&str], attrs: &[(&str, Attr)]) -> String {
        let out = self.fresh_name(op);
        self.node(MICROSOFT, op, inputs, &[&out], attrs);
        out
    }

    /// Add a node with named outputs. Optional inputs and outputs that are left out are empty strings.
    pub fn node(&mut self, domain: &str, op: &str, inputs: &[&str], outputs: &[&str], attrs: &[(&str, Attr)]) {
        let name = self.fresh_name(&format!("n_{op}"));
        self.graph.node.push(NodeProto {
            input: inputs.iter().map(|s| (*s).to_owned()).collect(),
            output: outputs.iter().map(|s| (*s).to_owned()).collect(),
            name,
            op_type: op.to_owned(),
            attribute: attrs.iter().map(|(name, attr)| attribute(name, attr)).collect(),
            domain: domain.to_owned(),
        });
    }

    /// A name that no other value of this graph has.
    pub fn fresh_name(&mut self, stem: &str) -> String {
        self.fresh += 1;
        format!("{stem}_{}", self.fresh)
    }

    /// Bytes of all constants.
    pub fn data_len(&self) -> usize {
        self.data.iter().map(|d| d.bytes.len()).sum()
    }

    /// Write the model to `path`; constants go to `path` + `.data` when the whole would pass protobuf's
    /// 2 GiB, else into the file itself.
    pub fn save(self, path: &Path) -> Result<()> {
        let external = self.data_len() > INLINE_LIMIT;
        self.save_as(path, external)
    }

    /// Like [`Self::save`], with the choice of external data made by the caller.
    pub fn save_as(mut self, path: &Path, external: bool) -> Result<()> {
        if external {
            let file_name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default() + ".data";
            let data_path = path.with_file_name(&file_name);
            let create = || -> std::io::Result<()> {
                let mut out = BufWriter::new(File::create(&data_path)?);
                let mut offset = 0usize;
                for (tensor, data) in self.graph.initializer.iter_mut().zip(&self.data) {
                    let padding = offset.next_multiple_of(EXTERNAL_ALIGNMENT) - offset;
                    out.write_all(&vec![0u8; padding])?;
                    offset += padding;
                    out.write_all(&data.bytes)?;
                    tensor.data_location = 1;
                    tensor.external_data = [
                        ("location", file_name.clone()),
                        ("offset", offset.to_string()),
                        ("length", data.bytes.len().to_string()),
                    ]
                    .into_iter()
                    .map(|(key, value)| StringStringEntryProto { key: key.to_owned(), value })
                    .collect();
                    offset += data.bytes.len();
                }
                out.flush()
            };
            let mut create = create;
            create().map_err(Error::file("write", &data_path))?;
        } else {
            for (tensor, data) in self.graph.initializer.iter_mut().zip(self.data) {
                tensor.raw_data = data.bytes;
            }
        }
        std::fs::write(path, encoded(self.graph)).map_err(Error::file("write", path))
    }

    /// The model's bytes, without the values of constants.
    pub(crate) fn skeleton(self) -> Vec<u8> {
        encoded(self.graph)
    }
}

fn encoded(graph: GraphProto) -> Vec<u8> {
    let model = ModelProto {
        ir_version: 10,
        producer_name: "nunatak".to_owned(),
        producer_version: env!("CARGO_PKG_VERSION").to_owned(),
        graph: Some(graph),
        opset_import: vec![
            OperatorSetIdProto { domain: String::new(), version: OPSET },
            OperatorSetIdProto { domain: MICROSOFT.to_owned(), version: 1 },
        ],
    };
    model.encode_to_vec()
}

fn value_info(name: &str, dtype: DType, shape: &[Dim]) -> ValueInfoProto {
    let dim = shape
        .iter()
        .map(|d| DimProto {
            value: Some(match d {
                Dim::Fixed(n) => DimValue::DimValue(*n as i64),
                Dim::Free(name) => DimValue::DimParam((*name).to_owned()),
            }),
        })
        .collect();
    let tensor_type = TensorTypeProto { elem_type: dtype as i32, shape: Some(TensorShapeProto { dim }) };
    ValueInfoProto { name: name.to_owned(), r#type: Some(TypeProto { tensor_type: Some(tensor_type) }) }
}

fn attribute(name: &str, attr: &Attr) -> AttributeProto {
    let mut proto = AttributeProto { name: name.to_owned(), ..Default::default() };
    match attr {
        Attr::Float(f) => (proto.r#type, proto.f) = (1, *f),
        Attr::Int(i) => (proto.r#type, proto.i) = (2, *i),
        Attr::Str(s) => (proto.r#type, proto.s) = (3, s.clone().into_bytes()),
        Attr::Ints(v) => (proto.r#type, proto.ints) = (7, v.clone()),
    }
    proto
}

#[derive(Clone, PartialEq, Message)]
struct ModelProto {
    #[prost(int64, tag = "1")]
    ir_version: i64,
    #[prost(string, tag = "2")]
    producer_name: String,
    #[prost(string, tag = "3")]
    producer_version: String,
    #[prost(message, optional, tag = "7")]
    graph: Option<GraphProto>,
    #[prost(message, repeated, tag = "8")]
    opset_import: Vec<OperatorSetIdProto>,
}

#[derive(Clone, PartialEq, Message)]
struct OperatorSetIdProto {
    #[prost(string, tag = "1")]
    domain: String,
    #[prost(int64, tag = "2")]
    version: i64,
}

#[derive(Clone, PartialEq, Message)]
struct GraphProto {
    #[prost(message, repeated, tag = "1")]
    node: Vec<NodeProto>,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(message, repeated, tag = "5")]
    initializer: Vec<TensorProto>,
    #[prost(message, repeated, tag = "11")]
    input: Vec<ValueInfoProto>,
    #[prost(message, repeated, tag = "12")]
    output: Vec<ValueInfoProto>,
}

#[derive(Clone, PartialEq, Message)]
struct NodeProto {
    #[prost(string, repeated, tag = "1")]
    input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    output: Vec<String>,
    #[prost(string, tag = "3")]
    name: String,
    #[prost(string, tag = "4")]
    op_type: String,
    #[prost(message, repeated, tag = "5")]
    attribute: Vec<AttributeProto>,
    #[prost(string, tag = "7")]
    domain: String,
}

#[derive(Clone, PartialEq, Message)]
struct AttributeProto {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(float, tag = "2")]
    f: f32,
    #[prost(int64, tag = "3")]
    i: i64,
    #[prost(bytes = "vec", tag = "4")]
    s: Vec<u8>,
    #[prost(int64, repeated, tag = "8")]
    ints: Vec<i64>,
    #[prost(int32, tag = "20")]
    r#type: i32,
}

#[derive(Clone, PartialEq, Message)]
struct TensorProto {
    #[prost(int64, repeated, tag = "1")]
    dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    data_type: i32,
    #[prost(string, tag = "8")]
    name: String,
    #[prost(bytes = "vec", tag = "9")]
    raw_data: Vec<u8>,
    #[prost(message, repeated, tag = "13")]
    external_data: Vec<StringStringEntryProto>,
    #[prost(int32, tag = "14")]
    data_location: i32,
}

#[derive(Clone, PartialEq, Message)]
struct StringStringEntryProto {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, Message)]
struct ValueInfoProto {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    r#type: Option<TypeProto>,
}

#[derive(Clone, PartialEq, Message)]
struct TypeProto {
    #[prost(message, optional, tag = "1")]
    tensor_type: Option<TensorTypeProto>,
}

#[derive(Clone, PartialEq, Message)]
struct TensorTypeProto {
    #[prost(int32, tag = "1")]
    elem_type: i32,
    #[prost(message, optional, tag = "2")]
    shape: Option<TensorShapeProto>,
}

#[derive(Clone, PartialEq, Message)]
struct TensorShapeProto {
    #[prost(message, repeated, tag = "1")]
    dim: Vec<DimProto>,
}

#[derive(Clone, PartialEq, Message)]
struct DimProto {
    #[prost(oneof = "DimValue", tags = "1, 2")]
    value: Option<DimValue>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum DimValue {
    #[prost(int64, tag = "1")]
    DimValue(i64),
    #[prost(string, tag = "2")]
    DimParam(String),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::session::{Input, Output, RuntimeOptions, Session};

    /// `y = x * weights + bias`.
    fn line() -> GraphBuilder {
        let mut graph = GraphBuilder::new("line");
        let x = graph.input("x", DType::F32, &[Dim::Free("B"), Dim::Fixed(3)]);
        let weights = graph.init("weights", Initializer::f32(&[3, 2], &[1.0, -2.0, 0.5, 4.0, 3.0, -1.0]));
        let bias = graph.init("bias", Initializer::f32(&[2], &[10.0, 20.0]));
        let product = graph.op("MatMul", &[&x, &weights], &[]);
        graph.node("", "Add", &[&product, &bias], &["y"], &[]);
        graph.output("y", DType::F32, &[Dim::Free("B"), Dim::Fixed(2)]);
        graph
    }

    fn run(path: &Path) -> Vec<Output> {
        let mut session = Session::open(path, &RuntimeOptions::default()).unwrap();
        session.run(&[("x", Input::F32(&[1.0, 2.0, 3.0, 0.0, 0.0, 1.0], &[2, 3]))], &["y"]).unwrap()
    }

    #[test]
    fn a_graph_with_its_constants_in_a_file_beside_it_is_the_same_graph() {
        let dir = tempfile::tempdir().unwrap();
        let (inline, external) = (dir.path().join("inline.onnx"), dir.path().join("external.onnx"));
        line().save_as(&inline, false).unwrap();
        line().save_as(&external, true).unwrap();
        assert!(!dir.path().join("inline.onnx.data").exists());
        let data = std::fs::read(dir.path().join("external.onnx.data")).unwrap();
        // The second constant begins where a page does, so that it can be mapped.
        assert_eq!(data.len(), EXTERNAL_ALIGNMENT + 2 * size_of::<f32>());
        let (whole, without) = (std::fs::read(&inline).unwrap(), std::fs::read(&external).unwrap());
        let holds = |bytes: &[u8], part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
        let weights = &data[..6 * size_of::<f32>()];
        assert!(holds(&whole, weights) && !holds(&without, weights) && holds(&without, b"external.onnx.data"));
        let expected = vec![Output { shape: vec![2, 2], data: vec![21.0, 23.0, 13.0, 19.0] }];
        assert_eq!(run(&inline), expected);
        assert_eq!(run(&external), expected);
    }

    #[test]
    fn a_small_graph_is_saved_in_one_file() {
        let dir = tempfile::tempdir().unwrap();
        line().save(&dir.path().join("model.onnx")).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
