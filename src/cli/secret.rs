//! `secret`: the secrets of the host. A value comes from a file, standard input or a question, never from the command line.
//! Out of scope: storing them.

use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use clap::Subcommand;
use clap_complete::engine::ArgValueCompleter;

use super::age::age;
use super::complete;
use super::failure::Failure;
use super::paint::Colors;
use super::print::{self, Format};
use super::provision_args::read;
use super::table::{Field, Table};
use super::terminal::NoEcho;
use crate::api::secret::{
    MAX_SIZE, SecretChange, SecretName, SecretValue, SecretView, parse_permissions,
};
use crate::clock;
use crate::wire::Client;

/// The commands for secrets.
#[derive(Debug, Subcommand)]
pub enum SecretCommand {
    /// Create a secret from a file or standard input
    Create(CreateArgs),
    /// Change the value or the owner of a secret, also in running guests
    Update(UpdateArgs),
    /// Delete secrets, also from running guests
    #[command(alias = "remove", alias = "rm")]
    Delete(DeleteArgs),
    /// List secrets, without their values
    #[command(alias = "ls")]
    List(ListArgs),
}

/// Arguments of `secret create`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The value is all of the file or of standard input, at most 1 MiB; on a terminal it is asked for, without showing it. Guests get it as \
/run/slice/secrets/NAME if `secrets:` of their group, or `vm add --secret`, contains the name.

Examples:
  slicectl secret create registry-token --from-file token.txt
  printf %s \"$TOKEN\" | slicectl secret create registry-token --uid 1000
  slicectl secret create registry-token")]
pub struct CreateArgs {
    /// The name: a letter or digit, then letters, digits, `.`, `_` and `-`
    #[arg(value_name = "NAME")]
    pub name: SecretName,
    /// Its content and its owner.
    #[command(flatten)]
    pub content: ContentArgs,
}

/// Arguments of `secret update`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The value is changed as by `secret create`; with --uid, --gid or --permissions, only if --from-file is given, too. Guests that have the \
secret get the change while they run.

Examples:
  slicectl secret update registry-token --from-file token.txt
  slicectl secret update registry-token --permissions 0440")]
pub struct UpdateArgs {
    /// The secret
    #[arg(value_name = "NAME", add = ArgValueCompleter::new(complete::secrets))]
    pub name: SecretName,
    /// Its content and its owner.
    #[command(flatten)]
    pub content: ContentArgs,
}

/// The value of a secret, and the owner of its file in guests.
#[derive(Debug, clap::Args)]
pub struct ContentArgs {
    /// Read the value from a file, - for standard input
    #[arg(long, value_name = "FILE")]
    pub from_file: Option<PathBuf>,
    /// User id of the file in guests; 0 if omitted
    #[arg(long)]
    pub uid: Option<u32>,
    /// Group id of the file in guests; 0 if omitted
    #[arg(long)]
    pub gid: Option<u32>,
    /// Permissions of the file in guests, in octal; 0600 if omitted
    #[arg(long, value_name = "MODE", value_parser = parse_permissions)]
    pub permissions: Option<u32>,
}

/// Arguments of `secret delete`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  slicectl secret delete registry-token")]
pub struct DeleteArgs {
    /// The secrets
    #[arg(value_name = "NAME", required = true, add = ArgValueCompleter::new(complete::secrets))]
    pub names: Vec<SecretName>,
}

/// Arguments of `secret list`.
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// Output format
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t)]
    pub output: Format,
}

/// `secret COMMAND`.
pub async fn secret(client: &Client, command: SecretCommand) -> Result<(), Failure> {
    match command {
        SecretCommand::Create(args) => {
            let value = value(args.content.from_file.as_deref())?;
            let change = args.content.change(Some(value));
            client.create_secret(&args.name, change).await?;
            print::out(&format!("secret/{} created\n", args.name))
        }
        SecretCommand::Update(args) => {
            let content = args.content;
            let value = match content.changes_value() {
                true => Some(value(content.from_file.as_deref())?),
                false => None,
            };
            let change = content.change(value);
            client.update_secret(&args.name, change).await?;
            print::out(&format!("secret/{} updated\n", args.name))
        }
        SecretCommand::Delete(args) => {
            let mut errors = Vec::new();
            for name in args.names {
                match client.delete_secret(&name).await {
                    Ok(()) => print::out(&format!("secret/{name} deleted\n"))?,
                    Err(error) => errors.extend(error.causes()),
                }
            }
            match errors.is_empty() {
                true => Ok(()),
                false => Err(Failure::Failed(errors)),
            }
        }
        SecretCommand::List(args) => {
            let secrets = client.secrets().await?;
            print::answer(args.output, &secrets, |secrets| table(secrets))
        }
    }
}

impl ContentArgs {
    /// Whether an update is of the value: one of the owner alone reads no value.
    fn changes_value(&self) -> bool {
        let changes_owner = self.uid.is_some() || self.gid.is_some() || self.permissions.is_some();
        self.from_file.is_some() || !changes_owner
    }

    fn change(&self, value: Option<SecretValue>) -> SecretChange {
        SecretChange {
            value,
            permissions: self.permissions,
            uid: self.uid,
            gid: self.gid,
        }
    }
}

fn table(secrets: &[SecretView]) -> String {
    if secrets.is_empty() {
        return "no secrets\n".to_owned();
    }
    let now = clock::now();
    let rows = secrets.iter().map(|secret| {
        let owner = format!("{}:{}", secret.uid, secret.gid);
        [
            secret.name.to_string(),
            secret.size.to_string(),
            secret.permissions.clone(),
            owner,
            age(secret.mod_time, now),
        ]
        .map(Field::from)
        .to_vec()
    });
    let heads = vec!["NAME", "BYTES", "MODE", "OWNER", "CHANGED"];
    let mut table = Table::new(heads, Colors::for_stdout());
    table.draw(rows.collect())
}

/// The value from a file, a pipe, or a question.
fn value(file: Option<&Path>) -> Result<SecretValue, Failure> {
    if let Some(path) = file {
        return Ok(SecretValue(read(path, MAX_SIZE)?));
    }
    if io::stdin().is_terminal() {
        return ask();
    }
    let mut bytes = Vec::new();
    let limit = MAX_SIZE as u64 + 1;
    io::stdin().lock().take(limit).read_to_end(&mut bytes)?;
    match bytes.len() > MAX_SIZE {
        true => Err(Failure::one(format!(
            "the value has more than {MAX_SIZE} bytes"
        ))),
        false => Ok(SecretValue(bytes)),
    }
}

/// A line that is not shown, without its line end.
fn ask() -> Result<SecretValue, Failure> {
    let mut stderr = io::stderr().lock();
    write!(stderr, "Value: ")?;
    stderr.flush()?;
    let mut line = String::new();
    let read = {
        let _no_echo = NoEcho::enter()?;
        io::stdin().lock().read_line(&mut line)
    };
    writeln!(stderr)?;
    match read? {
        0 => Err(Failure::one("cancelled: nothing was changed")),
        _ => Ok(SecretValue(line.trim_end_matches(['\n', '\r']).into())),
    }
}
