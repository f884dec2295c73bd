//! The menu: a list of VMs, for clients that name none.
//! Out of scope: names that are VMs (`session`).
//!
//! Plain lines, which every terminal shows. What a guest or a client has chosen is sanitized; the names of VMs are labels.

use bytes::Bytes;

use super::agent::{Agent, sentence};
use super::channel::{Gone, Output, Parts};
use super::console;
use super::flow::Input;
use super::shell::{self, End};
use super::target::Target;
use super::visitor::{FAILED, Login, Request, Visitor, audit, refuse};
use crate::api::meta::Name;
use crate::api::view::{Kind, Object, VmView};
use crate::api::vm::{Power, PowerCommand};
use crate::guest::endpoint::Access;
use crate::wire::Backend;

/// The maximum length of a line of input.
const MAX_LINE: usize = 64;

/// The exit status of a list.
const LISTED: u32 = 1;

/// Shows the menu, or the list if there is no terminal.
pub async fn run<B: Backend>(backend: &B, visitor: &Visitor, request: Request, mut parts: Parts) {
    let name = match &visitor.target {
        Target::Guest { vm, .. } => format!("vm/{vm} not found"),
        _ => "no VM is named".to_owned(),
    };
    match (request, parts.terminal.is_some()) {
        (Request::Shell, true) => {
            let ended = Menu::new(backend, visitor, &mut parts).run().await;
            if ended.is_ok() {
                parts.output.exit(0).await;
            }
        }
        (Request::Shell, false) => {
            let text = match vms(backend).await {
                Ok(vms) => list(&vms, "\n"),
                Err(text) => return refuse(parts, &text).await,
            };
            let usage = format!("{name}; log in as VM, USER+VM or console+VM");
            let shown = async {
                parts.output.message(&usage).await?;
                parts.output.data(text.into()).await
            };
            if shown.await.is_ok() {
                parts.output.exit(LISTED).await;
            }
        }
        _ => {
            let text = format!("{name}; log in as VM or USER+VM, such as ssh sandbox-1@host");
            let _ = parts.output.message(&text).await;
            parts.output.exit(FAILED).await;
        }
    }
}

/// A VM in the list.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    name: Name,
    state: String,
}

async fn vms<B: Backend>(backend: &B) -> Result<Vec<Row>, String> {
    let list = backend.get(Kind::Vm, None).await.map_err(sentence)?;
    let row = |object: Object| match object {
        Object::Vm(vm) => Some(Row {
            name: vm.metadata.name.clone(),
            state: state(&vm),
        }),
        _ => None,
    };
    Ok(list.items.into_iter().filter_map(row).collect())
}

/// The state of a VM.
fn state(vm: &VmView) -> String {
    let of_ready = || {
        let mut conditions = vm.status.conditions.iter();
        let ready = conditions.find(|condition| condition.kind == "Ready");
        ready.map_or_else(String::new, |ready| format!("{:?}", ready.reason))
    };
    match (vm.metadata.deleting, vm.power, vm.status.ready) {
        (true, ..) => "Deleting".to_owned(),
        (_, Power::Running, true) => "Running".to_owned(),
        (_, Power::Running, false) => of_ready(),
        (_, other, _) => format!("{other:?}"),
    }
}

/// Numbered lines.
fn list(vms: &[Row], line_end: &str) -> String {
    let width = vms.iter().map(|vm| vm.name.as_str().len()).max();
    let width = width.unwrap_or_default();
    let line = |(at, vm): (usize, &Row)| {
        format!(
            "{:>4}  {:width$}  {}{line_end}",
            at + 1,
            vm.name.as_str(),
            vm.state
        )
    };
    match vms.is_empty() {
        true => format!("There are no VMs.{line_end}"),
        false => vms.iter().enumerate().map(line).collect(),
    }
}

/// What follows the actions on a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// The list of VMs.
    List,
    /// The end.
    Quit,
}

/// The menu of one client.
struct Menu<'m, B> {
    backend: &'m B,
    visitor: &'m Visitor,
    parts: &'m mut Parts,
}

impl<'m, B: Backend> Menu<'m, B> {
    fn new(backend: &'m B, visitor: &'m Visitor, parts: &'m mut Parts) -> Self {
        Self {
            backend,
            visitor,
            parts,
        }
    }

    async fn run(&mut self) -> Result<(), Gone> {
        loop {
            let vms = match vms(self.backend).await {
                Ok(vms) => vms,
                Err(text) => {
                    self.parts.output.message(&text).await?;
                    return Ok(());
                }
            };
            let text = format!(
                "\r\n{}\r\nNumber or name of a VM, q to quit: ",
                list(&vms, "\r\n")
            );
            self.show(&text).await?;
            let Some(line) = self.line().await? else {
                return Ok(());
            };
            let number = line.parse::<usize>().ok().and_then(|n| n.checked_sub(1));
            let by_number = number.and_then(|at| vms.get(at));
            let found = by_number.or_else(|| vms.iter().find(|vm| vm.name.as_str() == line));
            match (found, line.as_str()) {
                (_, "q" | "quit" | "exit") => return Ok(()),
                (Some(vm), _) => {
                    if self.vm(&vm.name).await? == Next::Quit {
                        return Ok(());
                    }
                }
                (None, "") => {}
                (None, _) => self.show("\r\nThere is no such VM.\r\n").await?,
            }
        }
    }

    /// The actions on a VM, until the client goes back or leaves.
    async fn vm(&mut self, vm: &Name) -> Result<Next, Gone> {
        loop {
            let text = format!(
                "\r\n{vm}: (c)onnect, c(o)nsole, (p)ause, (r)esume, (s)hutdown, (b)ack, (q)uit: "
            );
            self.show(&text).await?;
            let Some(line) = self.line().await? else {
                return Ok(Next::Quit);
            };
            match line.as_str() {
                "c" | "connect" => self.connect(vm).await?,
                "o" | "console" => {
                    audit(self.visitor, vm, "console");
                    let ended = console::connect(self.backend, vm, self.parts).await?;
                    if let Err(text) = ended {
                        self.parts.output.message(&text).await?;
                    }
                }
                "p" | "pause" => self.power(vm, PowerCommand::Pause).await?,
                "r" | "resume" => self.power(vm, PowerCommand::Resume).await?,
                "s" | "shutdown" => self.power(vm, PowerCommand::Stop).await?,
                "b" | "back" | "" => return Ok(Next::List),
                "q" | "quit" => return Ok(Next::Quit),
                _ => self.show("\r\nThere is no such action.\r\n").await?,
            }
        }
    }

    async fn connect(&mut self, vm: &Name) -> Result<(), Gone> {
        let agent = match Agent::of(self.backend, vm, Access::Shell).await {
            Ok(agent) => agent,
            Err(reason) => return self.parts.output.message(&reason.into_text()).await,
        };
        audit(self.visitor, vm, Access::Shell);
        let Some(terminal) = self.parts.terminal.clone() else {
            return Ok(());
        };
        let login = Login {
            user: None,
            env: self.parts.env.clone(),
        };
        match shell::run(self.backend, &agent, login, None, terminal, self.parts).await {
            End::Exited(_) => Ok(()),
            End::Failed(text) => self.parts.output.message(&text).await,
            End::Gone => Err(Gone),
        }
    }

    async fn power(&mut self, vm: &Name, command: PowerCommand) -> Result<(), Gone> {
        match self.backend.power(vm.clone(), command).await {
            Ok(_) => {
                self.show(&format!("\r\n{vm}: {command} requested\r\n"))
                    .await
            }
            Err(refusal) => self.parts.output.message(&sentence(refusal)).await,
        }
    }

    async fn show(&self, text: &str) -> Result<(), Gone> {
        self.parts
            .output
            .data(Bytes::copy_from_slice(text.as_bytes()))
            .await
    }

    async fn line(&mut self) -> Result<Option<String>, Gone> {
        read_line(&mut self.parts.input, &self.parts.output).await
    }
}

/// Reads a line and echoes it. `None` at the end of the input, and for Ctrl-C and Ctrl-D. Keys after the line stay in the input: they are
/// for what the line starts.
async fn read_line(input: &mut Input, output: &Output) -> Result<Option<String>, Gone> {
    let mut line = String::new();
    loop {
        let Some(mut keys) = input.next().await else {
            return Ok(None);
        };
        let (mut echo, mut is_done) = (String::new(), None);
        while let (Some(key), None) = (keys.first().copied(), is_done) {
            keys = keys.slice(1..);
            match key {
                b'\r' | b'\n' => is_done = Some(true),
                3 | 4 => is_done = Some(false),
                8 | 127 if line.pop().is_some() => echo.push_str("\x08 \x08"),
                b' '..=b'~' if line.len() < MAX_LINE => {
                    line.push(char::from(key));
                    echo.push(char::from(key));
                }
                _ => {}
            }
        }
        if is_done.is_some() {
            echo.push_str("\r\n");
        }
        input.put_back(keys);
        if !echo.is_empty() {
            output.data(echo.into()).await?;
        }
        match is_done {
            Some(true) => return Ok(Some(line.trim().to_owned())),
            Some(false) => return Ok(None),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_numbered_and_aligned() {
        let row = |name: &str, state: &str| Row {
            name: name.parse().unwrap(),
            state: state.to_owned(),
        };
        let vms = [row("a-1", "Running"), row("sandbox-10", "Paused")];
        assert_eq!(
            list(&vms, "\n"),
            "   1  a-1         Running\n   2  sandbox-10  Paused\n"
        );
        assert_eq!(list(&[], "\r\n"), "There are no VMs.\r\n");
    }
}
