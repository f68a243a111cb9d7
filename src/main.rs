//! The program: sets up TLS and the runtime, and leaves the rest to [`narvault::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    // Fails only if a provider is installed already, which is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let cli = narvault::cli::parse(std::env::args_os()).unwrap_or_else(|error| error.exit());
    // Two at least: one may be held up by the disk for a while (`narvault::threads`).
    let threads = std::thread::available_parallelism().map_or(2, |count| count.get().max(2));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(narvault::cli::run(cli))
}
