//! `vm bg`: commands in the background of a guest.
//! Out of scope: commands in the foreground (`exec`).

use std::time::Duration;

use futures::StreamExt;

use super::super::age;
use super::super::failure::{Failure, warn};
use super::super::paint::Colors;
use super::super::print;
use super::super::table::{Field, Table};
use super::background_args::{
    BackgroundCommand, CommandRef, KillArgs, ListArgs, LogsArgs, StartArgs, WaitArgs,
};
use super::output::{Output, Raw};
use super::{exit_with, with_query};
use crate::clock;
use crate::guest::endpoint::WAIT_LIMIT;
use crate::guest::protocol::{
    Encoding, ExecInfo, ExecQuery, Frame, FrameKind, Kill, Killed, Reaped, Started, Waited,
};
use crate::wire::{AgentRequest, Client};

/// `vm bg …`.
pub async fn background(client: &Client, command: BackgroundCommand) -> Result<(), Failure> {
    match command {
        BackgroundCommand::List(args) => list(client, args).await,
        BackgroundCommand::Start(args) => start(client, args).await,
        BackgroundCommand::Info(args) => {
            let info: ExecInfo = client.agent_json(get(&args.command, "")).await?;
            print::answer(args.output, &info, details)
        }
        BackgroundCommand::Logs(args) => logs(client, args).await,
        BackgroundCommand::Kill(args) => kill(client, args).await,
        BackgroundCommand::Wait(args) => wait(client, args).await,
        BackgroundCommand::Remove(args) => {
            let CommandRef { vm, id } = args.command;
            let request = AgentRequest::delete(&vm, format!("/exec/{id}"));
            let _: Reaped = client.agent_json(request).await?;
            print::out(&format!("{id} removed\n"))
        }
    }
}

/// A request about a command.
fn get(command: &CommandRef, rest: &str) -> AgentRequest {
    AgentRequest::get(&command.vm, format!("/exec/{}{rest}", command.id))
}

async fn list(client: &Client, args: ListArgs) -> Result<(), Failure> {
    let all: Vec<ExecInfo> = client
        .agent_json(AgentRequest::get(&args.vm, "/exec"))
        .await?;
    print::answer(args.output, &all, |all| {
        let columns = vec!["ID", "PID", "STATE", "AGE", "COMMAND"];
        let rows = all.iter().map(|info| {
            vec![
                Field::from(&info.exec_id),
                Field::from(info.pid),
                Field::from(state(info)),
                Field::from(age::age(info.started_at, clock::now())),
                Field::from(command_line(info)),
            ]
        });
        Table::new(columns, Colors::for_stdout()).draw(rows.collect())
    })
}

fn state(info: &ExecInfo) -> String {
    match (info.running, &info.signal, info.exit_code) {
        (true, _, _) => "running".to_owned(),
        (false, Some(signal), _) => signal.clone(),
        (false, None, Some(code)) => format!("exited ({code})"),
        (false, None, None) => "ended".to_owned(),
    }
}

fn command_line(info: &ExecInfo) -> String {
    let words = std::iter::once(&info.command).chain(&info.args);
    words.map(String::as_str).collect::<Vec<_>>().join(" ")
}

fn details(info: &ExecInfo) -> String {
    let mut lines = vec![
        ("ID", info.exec_id.clone()),
        ("Command", command_line(info)),
        ("PID", info.pid.to_string()),
        ("State", state(info)),
        ("Started", info.started_at.to_string()),
    ];
    lines.extend(info.ended_at.map(|at| ("Ended", at.to_string())));
    lines.extend(info.cwd.clone().map(|cwd| ("Directory", cwd)));
    lines.extend(info.uid.map(|uid| ("User", uid.to_string())));
    let lost = info.bytes_dropped;
    lines.push((
        "Output",
        format!("{} bytes, {lost} of them dropped", info.bytes_written),
    ));
    let line = |(name, value): (&str, String)| {
        format!("{name:<11}{}\n", super::super::paint::one_line(&value))
    };
    lines.into_iter().map(line).collect()
}

async fn start(client: &Client, args: StartArgs) -> Result<(), Failure> {
    let query = ExecQuery {
        background: true,
        stdio: Encoding::Base64,
        ring_bytes: args.ring_bytes,
        ..args.program.query(args.command)
    };
    let request = AgentRequest::post(&args.vm, with_query("/exec", &query)?);
    let started: Started = client.agent_json(request).await?;
    print::out(&format!("{}\n", started.exec_id))
}

async fn logs(client: &Client, args: LogsArgs) -> Result<(), Failure> {
    let rest = format!("/logs?follow={}&from_id={}", args.follow, args.from_id);
    let mut frames = client
        .agent_lines::<Frame>(get(&args.command, &rest))
        .await?;
    let mut output = Output::start(Raw::ExceptTerminal);
    while let Some(frame) = frames.next().await {
        let frame = frame?;
        match frame.kind {
            FrameKind::Stdout | FrameKind::Stderr => output.write_frame(&frame).await?,
            FrameKind::Gap => warn(&format!(
                "{} bytes of earlier output are no longer in the buffer",
                frame.dropped_bytes.unwrap_or_default()
            )),
            FrameKind::Started | FrameKind::Exit => {}
        }
    }
    output.finish().await
}

async fn kill(client: &Client, args: KillArgs) -> Result<(), Failure> {
    let CommandRef { vm, id } = args.command;
    let body = Kill {
        signal: Some(args.signal),
        grace_ms: Some(u64::try_from(args.grace.as_millis()).unwrap_or(u64::MAX)),
    };
    let request = AgentRequest::post(&vm, format!("/exec/{id}/kill")).json(&body);
    let killed: Killed = client.agent_json(request).await?;
    print::out(&match killed.signal_sent.as_str() {
        "" => format!("{id} has ended already\n"),
        signal => format!("{id} {signal} sent\n"),
    })
}

/// Waits for the end of a command; several requests if the time is longer than one may wait.
async fn wait(client: &Client, args: WaitArgs) -> Result<(), Failure> {
    let begin = clock::monotonic();
    loop {
        let rest = args.timeout.saturating_sub(begin.elapsed());
        let seconds = rest.as_secs_f64().ceil() as u64;
        let path = format!("/wait-exit?timeout={}", seconds.min(WAIT_LIMIT));
        let request = get(&args.command, &path).without_timeout();
        let waited: Waited = client.agent_json(request).await?;
        if !waited.running {
            let signal = waited
                .signal
                .map(|signal| format!("the command was ended by {signal}"));
            return exit_with(
                waited.exit_code.unwrap_or_default(),
                signal.into_iter().collect(),
            );
        }
        if args.timeout.saturating_sub(begin.elapsed()) == Duration::ZERO {
            let limit = humantime::format_duration(args.timeout);
            return Err(Failure::one(format!(
                "the command still runs after {limit}"
            )));
        }
    }
}
