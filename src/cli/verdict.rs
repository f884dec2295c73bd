//! `explain`: prints whether a packet is allowed, and the deciding rule.
//! Out of scope: the evaluation of rules.

use super::args::ExplainArgs;
use super::failure::Failure;
use super::paint::{Colors, Severity, one_line};
use super::print;
use crate::api::policy::Verdict;
use crate::api::view::Explanation;
use crate::wire::Client;

/// `explain VM DST[:PORT[/PROTO]]`.
pub async fn explain(client: &Client, args: ExplainArgs) -> Result<(), Failure> {
    let explanation = client.explain(&args.vm, &args.packet).await?;
    print::answer(args.output, &explanation, format_explanation)
}

fn format_explanation(explanation: &Explanation) -> String {
    let (severity, result) = match explanation.verdict {
        Verdict::Allow => (Severity::Good, "allowed"),
        Verdict::Deny => (Severity::Error, "denied"),
    };
    let note = explanation.note.as_deref().map(one_line);
    let note = note.map_or_else(String::new, |note| format!("  note   {note}\n"));
    format!(
        "{} -> {}: {}\n  entry  {}\n  rule   {}\n  place  {}\n{note}",
        explanation.vm,
        one_line(&explanation.packet),
        Colors::for_stdout().paint(severity, result),
        one_line(&explanation.entry),
        one_line(&explanation.rule),
        one_line(&explanation.chain),
    )
}
