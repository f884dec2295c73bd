//! `explain`: prints whether a packet is allowed, and the deciding rule.
//! Out of scope: the evaluation of rules.

use super::args::ExplainArgs;
use super::failure::Failure;
use super::paint::{Colours, Tone, one_line};
use super::print;
use crate::api::policy::Verdict;
use crate::api::view::Explanation;
use crate::wire::Client;

/// `explain VM DST[:PORT[/PROTO]]`.
pub async fn explain(client: &Client, args: ExplainArgs) -> Result<(), Failure> {
    let explanation = client.explain(&args.vm, &args.packet).await?;
    print::answer(args.output, &explanation, sentence)
}

fn sentence(found: &Explanation) -> String {
    let (tone, word) = match found.verdict {
        Verdict::Allow => (Tone::Good, "allowed"),
        Verdict::Deny => (Tone::Bad, "denied"),
    };
    format!(
        "{} -> {}: {}\n  entry  {}\n  rule   {}\n  place  {}\n",
        found.vm,
        one_line(&found.packet),
        Colours::of_stdout().paint(tone, word),
        one_line(&found.entry),
        one_line(&found.rule),
        one_line(&found.place),
    )
}
