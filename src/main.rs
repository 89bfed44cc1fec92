//! The command `nunatak`; everything it does is in the library's [`nunatak::cli`].

fn main() -> std::process::ExitCode {
    nunatak::cli::main()
}
