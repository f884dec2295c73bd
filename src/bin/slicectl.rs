//! `slicectl`: see [`slicectl::cli`].
//! Not here: anything else.

fn main() -> std::process::ExitCode {
    slicectl::cli::main()
}
