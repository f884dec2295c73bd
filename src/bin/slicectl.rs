//! `slicectl`: see [`slicectl::cli`].
//! Out of scope: anything else.

fn main() -> std::process::ExitCode {
    slicectl::cli::main(|args| Box::pin(slicectl::daemon::without_daemon(args)))
}
