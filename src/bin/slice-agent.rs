//! `slice-agent`: see [`slicectl::guest::agent`].
//! Out of scope: anything else.

fn main() -> std::process::ExitCode {
    slicectl::guest::agent::main()
}
