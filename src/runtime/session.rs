//! One ONNX graph, loaded and ready to run: the narrow door through which the rest of the crate meets
//! ONNX Runtime.
//!
//! A session's `run` needs `&mut self` (ONNX Runtime may reuse memory between runs), so a session has one
//! owner; who needs two graphs at once opens two sessions.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use half::f16;
use half::slice::HalfFloatSliceExt;
use ort::environment::{Environment, GlobalThreadPoolOptions};
use ort::session::builder::GraphOptimizationLevel;
use ort::session::{Session as OrtSession, SessionInputValue};
use ort::value::{DynValue, TensorElementType, TensorRef};

use crate::error::{Error, Result};
use crate::export::onnx::{DType, Dim, GraphBuilder};
use crate::runtime::{device, setup};

/// How a model is run.
#[derive(Debug, Clone, Default)]
pub struct RuntimeOptions {
    /// Where it runs.
    pub device: device::Device,
    /// Where another model of this process runs, if on a GPU: one build of ONNX Runtime serves all of them.
    pub beside: Option<device::Device>,
    /// Threads inside one run; 0 = all cores this process may use.
    pub threads: usize,
    /// Never fetch anything; a missing piece is an error.
    pub offline: bool,
    /// Start every kernel of a step of decoding by itself on a GPU, in the place of a CUDA graph: to measure, or to find a fault.
    pub unrecorded: bool,
}

impl RuntimeOptions {
    /// The number of threads meant by [`Self::threads`].
    pub fn thread_count(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        }
    }
}

/// A tensor on its way in: its elements and its shape.
#[derive(Debug, Clone, Copy)]
pub enum Input<'a> {
    /// 32-bit floats.
    F32(&'a [f32], &'a [usize]),
    /// 16-bit floats: the KV cache of a graph of that type.
    F16(&'a [f16], &'a [usize]),
    /// 64-bit integers.
    I64(&'a [i64], &'a [usize]),
}

/// A tensor on its way out, as 32-bit floats whatever the graph's own float type.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Output {
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its elements in row-major order.
    pub data: Vec<f32>,
}

/// Makes ONNX Runtime take exact products of bytes where the fast ones are not, see [`bytes_overflow`]: scores of a random
/// cross-encoder were off by 1.5 without it and less than 0.2 with it, for about 5% more processor time.
const EXACT_BYTES: &str = "session.x64quantprecision";

/// Whether the fast product of unsigned by signed bytes adds pairs in 16 bits, which overflow: on x86 processors without
/// VNNI. Those with it are exact anyway, and asking them to be takes the slow kernel: 66 texts/s for 105.
#[cfg(target_arch = "x86_64")]
fn bytes_overflow() -> bool {
    !(std::is_x86_feature_detected!("avx512vnni") || std::is_x86_feature_detected!("avxvnni"))
}

/// Other processors have no such product.
#[cfg(not(target_arch = "x86_64"))]
fn bytes_overflow() -> bool {
    false
}

/// A graph that can be run.
#[derive(Debug)]
pub struct Session {
    inner: OrtSession,
    path: PathBuf,
    device: device::Device,
}

/// Tell ONNX Runtime, before it is loaded, not to send anything home.
///
/// From version 1.29 on the published libraries for Linux and macOS report models, devices and timings to their
/// maker as soon as an environment is made, too early for [`with_telemetry`](ort::environment::EnvironmentBuilder)
/// to forbid all of it, and keep what they could not send in the user's cache folder. A variable of this name that the
/// user has set is left as it is. The command line calls this first of all; a program that uses the library calls it
/// before it starts threads, or sets the variable itself.
pub fn silence_telemetry() {
    const VARIABLE: &str = "ORT_DISABLE_TELEMETRY";
    if std::env::var_os(VARIABLE).is_none() {
        #[expect(unsafe_code, reason = "the library reads no other switch, and it must be set inside this process")]
        // SAFETY: no other thread may read the environment through C meanwhile. The command line is here before it has
        // any thread; later callers run before ONNX Runtime is loaded, and nothing else in this crate reads it so.
        unsafe {
            std::env::set_var(VARIABLE, "1");
        }
    }
}

/// The process-wide ONNX Runtime.
struct Runtime {
    environment: Environment,
    /// The library it was loaded from.
    library: PathBuf,
    /// Threads that its sessions share. With threads of their own, those of one stage would still wait busily for more work
    /// while the next stage runs.
    threads: usize,
}

impl Runtime {
    fn version(&self) -> Option<String> {
        ort::util::probe(&self.library).map(|minor| format!("1.{minor}"))
    }
}

/// Loaded once in a process.
static RUNTIME: OnceLock<Runtime> = OnceLock::new();

/// ONNX Runtime, loaded on the first call.
fn runtime(options: &RuntimeOptions) -> Result<&'static Runtime> {
    // ONNX Runtime takes one environment a process, and models may be loaded side by side.
    static LOADING: Mutex<()> = Mutex::new(());
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime);
    }
    let _loading = LOADING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime);
    }
    let library = setup::runtime_library(options)?;
    silence_telemetry();
    let threads = options.thread_count();
    let load = |library: &Path| -> Result<Environment, String> {
        let builder = ort::init_from(library).map_err(|e| e.to_string())?;
        // Its constructor calls the library, which is there now.
        let shared = GlobalThreadPoolOptions::default().with_intra_threads(threads).map_err(|e| e.to_string())?;
        builder
            .with_global_thread_pool(shared)
            .with_name("nunatak")
            .with_telemetry(false)
            .build()
            .map_err(|e| e.to_string())
    };
    let environment = load(&library).map_err(|message| Error::Setup {
        problem: format!("cannot load ONNX Runtime from {}: {message}", library.display()),
        hint: Some("run `nunatak setup`, or point ORT_DYLIB_PATH at a libonnxruntime of version 1.24 or later".into()),
    })?;
    Ok(RUNTIME.get_or_init(|| Runtime { environment, library, threads }))
}

/// Version of the ONNX Runtime in use, which is loaded for it: `1.32`. A build says no more of itself.
pub fn runtime_version(options: &RuntimeOptions) -> Result<String> {
    Ok(runtime(options)?.version().unwrap_or_else(|| "of an unknown version".to_owned()))
}

/// The same if it is loaded already: nothing before.
pub fn loaded_version() -> Option<String> {
    RUNTIME.get()?.version()
}

/// A session of no use but that it has memory of its own on the device of `options`, from which buffers can be had.
///
/// What a recorded run computed in between lay in its session's memory, and a repetition writes there whoever has that memory since. So
/// buffers that outlive a run must come from elsewhere.
///
/// # Errors
/// [`Error::Device`] when the device cannot be had.
pub(in crate::runtime) fn memory_session(options: &RuntimeOptions) -> Result<OrtSession> {
    let mut graph = GraphBuilder::new("memory");
    let input = graph.input("x", DType::F32, &[Dim::Fixed(1)]);
    graph.node("", "Identity", &[&input], &["y"], &[]);
    graph.output("y", DType::F32, &[Dim::Fixed(1)]);
    let failed = Error::internal("taking memory of a device");
    let builder = OrtSession::builder(&runtime(options)?.environment).map_err(failed)?;
    let (mut builder, _) = device::register(builder, options, false)?;
    builder.commit_from_memory(&graph.skeleton()).map_err(Error::internal("taking memory of a device"))
}

/// The device that a model gets: the one asked for, or what `auto` takes on this machine. ONNX Runtime is loaded to see.
///
/// # Errors
/// As [`Session::open`].
pub fn taken_device(options: &RuntimeOptions) -> Result<device::Device> {
    let builder = OrtSession::builder(&runtime(options)?.environment).map_err(Error::internal("asking for a GPU"))?;
    Ok(device::register(builder, options, false)?.1)
}

impl Session {
    /// Load the graph at `path` on the device of `options`.
    ///
    /// # Errors
    /// [`Error::Setup`] without a runtime library, [`Error::Device`] when the device cannot be had,
    /// [`Error::Model`] when the graph is not one.
    pub fn open(path: &Path, options: &RuntimeOptions) -> Result<Self> {
        Self::open_with(path, options, false)
    }

    /// The same, and with `capture` a GPU may record a run and repeat it ([`crate::runtime::step_graph`]).
    ///
    /// # Errors
    /// As [`Self::open`], and [`Error::Model`] for a graph that cannot be recorded because some of it runs on the processor.
    pub(in crate::runtime) fn open_with(path: &Path, options: &RuntimeOptions, capture: bool) -> Result<Self> {
        let runtime = runtime(options)?;
        let bad = |e: &dyn std::fmt::Display| {
            Error::model(
                path.display().to_string(),
                format!("ONNX Runtime cannot load it: {e}"),
                "export or import the model again with `nunatak models import`",
            )
        };
        let builder = OrtSession::builder(&runtime.environment).map_err(|e| bad(&e))?;
        let builder = builder.with_optimization_level(GraphOptimizationLevel::Level3).map_err(|e| bad(&e))?;
        let builder = match options.thread_count() {
            threads if threads == runtime.threads => builder,
            own => {
                let builder = builder.with_independent_thread_pool().map_err(|e| bad(&e))?;
                builder.with_intra_threads(own).map_err(|e| bad(&e))?
            }
        };
        let exact = if bytes_overflow() { "1" } else { "0" };
        let builder = builder.with_config_entry(EXACT_BYTES, exact).map_err(|e| bad(&e))?;
        let (mut builder, device) = device::register(builder, options, capture)?;
        let inner = builder.commit_from_file(path).map_err(|e| bad(&e))?;
        tracing::info!(model = %path.display(), %device, "model loaded");
        Ok(Self { inner, path: path.to_path_buf(), device })
    }

    /// Where this session runs: the device that was asked for, or the one that `auto` took.
    pub fn device(&self) -> device::Device {
        self.device
    }

    /// Names of the graph's inputs.
    pub fn input_names(&self) -> Vec<&str> {
        self.inner.inputs().iter().map(|i| i.name()).collect()
    }

    /// Names of the graph's outputs.
    pub fn output_names(&self) -> Vec<&str> {
        self.inner.outputs().iter().map(|o| o.name()).collect()
    }

    /// Whether an output of the graph is of 16-bit floats.
    pub(in crate::runtime) fn gives_short(&self, output: &str) -> bool {
        let output = self.inner.outputs().iter().find(|o| o.name() == output);
        output.and_then(|o| o.dtype().tensor_type()) == Some(TensorElementType::Float16)
    }

    /// The file this session was loaded from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// ONNX Runtime's own session, for code in `runtime/` that binds buffers.
    pub(in crate::runtime) fn ort(&mut self) -> &mut OrtSession {
        &mut self.inner
    }

    /// Run the graph once and return the named outputs as floats, in the order asked.
    pub fn run(&mut self, inputs: &[(&str, Input)], outputs: &[&str]) -> Result<Vec<Output>> {
        let values = inputs
            .iter()
            .map(|(name, input)| Ok(((*name).to_owned(), tensor(input)?)))
            .collect::<Result<Vec<(String, SessionInputValue)>>>()?;
        let results = self.inner.run(values).map_err(Error::internal("running a model"))?;
        outputs
            .iter()
            .map(|name| {
                let value = results.get(*name).ok_or_else(|| Error::Internal {
                    doing: "running a model",
                    message: format!("the graph {} has no output {name}", self.path.display()),
                })?;
                let output = floats(value)?;
                if output.data.iter().any(|x| x.is_nan()) {
                    return Err(Error::Internal {
                        doing: "running a model",
                        message: format!("{} gave numbers that are none (NaN)", self.path.display()),
                    });
                }
                Ok(output)
            })
            .collect()
    }
}

fn tensor<'a>(input: &Input<'a>) -> Result<SessionInputValue<'a>> {
    let failed = Error::internal("preparing a tensor");
    Ok(match *input {
        Input::F32(data, shape) => TensorRef::from_array_view((shape, data)).map_err(failed)?.into(),
        Input::F16(data, shape) => TensorRef::from_array_view((shape, data)).map_err(failed)?.into(),
        Input::I64(data, shape) => TensorRef::from_array_view((shape, data)).map_err(failed)?.into(),
    })
}

/// The elements of a float tensor, whatever its float type.
pub(in crate::runtime) fn floats(value: &DynValue) -> Result<Output> {
    let is_half = value.dtype().tensor_type() == Some(TensorElementType::Float16);
    let (shape, data) = if is_half {
        let (shape, data) = value.try_extract_tensor::<f16>().map_err(Error::internal("reading a tensor"))?;
        (shape, data.to_f32_vec())
    } else {
        let (shape, data) = value.try_extract_tensor::<f32>().map_err(Error::internal("reading a tensor"))?;
        (shape, data.to_vec())
    };
    Ok(Output { shape: shape.iter().map(|&d| d as usize).collect(), data })
}
