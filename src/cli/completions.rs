//! `narvault completions`: what a shell needs to complete our commands.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::failure::Failure;
use super::{Cli, Context};

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  narvault completions bash > ~/.local/share/bash-completion/completions/narvault"
)]
pub struct CompletionsArgs {
    /// Which shell
    #[arg(value_enum)]
    shell: Shell,
}

pub fn run(args: CompletionsArgs, context: &Context) -> Result<(), Failure> {
    // Into memory first: the generator panics where it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "narvault", &mut script);
    context.printer.data(&String::from_utf8_lossy(&script))
}
