//! A provider's usage figures as it names them, and how several statements of them are one report.
//!
//! Not here: reading them (one file a dialect), and everything else that is known of an answer (`tally`).
use super::read::MAX_COUNT;
use crate::tokens::Tokens;

/// The figures of one usage object; `None`: not stated.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stated {
    /// All input, or only what no cache was involved in: see `input_includes_cache`.
    pub(crate) input: Option<u64>,
    pub(crate) cache_write: Option<u64>,
    pub(crate) cache_write_5m: Option<u64>,
    pub(crate) cache_write_1h: Option<u64>,
    pub(crate) cache_read: Option<u64>,
    /// Input beside `input` that the provider's own tools made.
    pub(crate) tool_prompt: Option<u64>,
    /// Output with reasoning, or without it: see `output_excludes_reasoning`.
    pub(crate) output: Option<u64>,
    pub(crate) reasoning: Option<u64>,
    /// What is charged beside all of these.
    pub(crate) beside: Option<Tokens>,
    pub(crate) input_includes_cache: bool,
    pub(crate) output_excludes_reasoning: bool,
}

/// How many figures a statement has, without what is beside them.
const FIGURES: usize = 8;

impl Stated {
    fn figures(&self) -> [Option<u64>; FIGURES] {
        [
            self.input,
            self.cache_write,
            self.cache_write_5m,
            self.cache_write_1h,
            self.cache_read,
            self.tool_prompt,
            self.output,
            self.reasoning,
        ]
    }

    /// How far the generation had come: output, then input.
    fn progress(&self) -> Progress {
        let [input, cache_write, _, _, cache_read, tool_prompt, output, _] = self.figures();
        let all = [input, cache_write, cache_read, tool_prompt].into_iter().flatten();
        (output.unwrap_or_default(), all.fold(0, u64::saturating_add))
    }
}

type Progress = (u64, u64);

/// All statements of an answer in one. Figures are cumulative, so they are never summed: each is that of the
/// statement with the most progress among those that have it, in whatever order and however often they come.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Report {
    figures: [Option<(Progress, u64)>; FIGURES],
    beside: Tokens,
    input_includes_cache: bool,
    output_excludes_reasoning: bool,
}

impl Report {
    /// Takes one more statement.
    pub(crate) fn take(&mut self, stated: &Stated) {
        let progress = stated.progress();
        for (figure, stated) in self.figures.iter_mut().zip(stated.figures()) {
            *figure = (*figure).max(stated.map(|count| (progress, count)));
        }
        let beside = stated.beside.unwrap_or_default();
        if beside.total() > self.beside.total() {
            self.beside = beside;
        }
        self.input_includes_cache = stated.input_includes_cache;
        self.output_excludes_reasoning = stated.output_excludes_reasoning;
    }

    /// Whether input and output were stated, so that nothing is missing.
    pub(crate) fn is_complete(&self) -> bool {
        let [input, .., output, _] = self.figures;
        input.is_some() && output.is_some()
    }

    /// Whether output was stated.
    pub(crate) fn has_output(&self) -> bool {
        let [.., output, _] = self.figures;
        output.is_some()
    }

    /// Whether any figure was stated.
    pub(crate) fn is_known(&self) -> bool {
        self.figures.iter().any(Option::is_some)
    }

    /// The figures in the classes of the ledger; what was never stated is zero.
    pub(crate) fn tokens(&self) -> Tokens {
        let [input, cache_write, five_minutes, hour, cache_read, tool_prompt, output, reasoning] =
            self.figures.map(|figure| figure.map(|(_, count)| count));
        let stated = |figure: Option<u64>| figure.unwrap_or_default();
        // a breakdown without its sum is the sum
        let cache_write = cache_write.unwrap_or_else(|| stated(five_minutes).saturating_add(stated(hour)));
        let cache_read = stated(cache_read);
        let included = if self.input_includes_cache { cache_write.saturating_add(cache_read) } else { 0 };
        let beside_output = if self.output_excludes_reasoning { stated(reasoning) } else { 0 };
        let output = stated(output).saturating_add(beside_output);
        let cache_write_1h = stated(hour).min(cache_write);
        Tokens {
            input: stated(input).saturating_sub(included).saturating_add(stated(tool_prompt)),
            cache_write,
            cache_read,
            output,
            reasoning: stated(reasoning).min(output),
            cache_write_5m: stated(five_minutes).min(cache_write - cache_write_1h),
            cache_write_1h,
            tool_prompt: stated(tool_prompt),
        }
        .saturating_add(&self.beside)
        .at_most(MAX_COUNT)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tokens_of(statements: &[Stated]) -> Tokens {
        let mut report = Report::default();
        statements.iter().for_each(|stated| report.take(stated));
        report.tokens()
    }

    #[test]
    fn parts_never_exceed_what_they_are_part_of() {
        let stated = Stated {
            cache_write: Some(10),
            cache_write_5m: Some(8),
            cache_write_1h: Some(7),
            output: Some(5),
            reasoning: Some(9),
            ..Stated::default()
        };
        let tokens = tokens_of(&[stated]);
        assert_eq!((tokens.cache_write_5m, tokens.cache_write_1h, tokens.reasoning), (3, 7, 5));
        let bare = tokens_of(&[Stated { cache_write: None, ..stated }]);
        assert_eq!((bare.cache_write, bare.cache_write_5m), (15, 8), "a breakdown is not added to its sum");
    }

    #[test]
    fn sums_are_bounded_as_their_parts_are() {
        let compacted = Tokens { input: 100 * MAX_COUNT, output: MAX_COUNT, ..Tokens::default() };
        let stated = Stated {
            cache_write_5m: Some(MAX_COUNT),
            cache_write_1h: Some(MAX_COUNT),
            output: Some(MAX_COUNT),
            beside: Some(compacted),
            ..Stated::default()
        };
        let tokens = tokens_of(&[stated]);
        assert_eq!([tokens.input, tokens.cache_write, tokens.output], [MAX_COUNT; 3]);
    }

    #[test]
    fn what_one_statement_lacks_another_has() {
        let start = Stated { input: Some(12), cache_read: Some(40), output: Some(1), ..Stated::default() };
        let restated = Stated { input: Some(2_679), output: Some(100), ..Stated::default() };
        let end = Stated { output: Some(510), ..Stated::default() };
        let expected = Tokens { input: 2_679, cache_read: 40, output: 510, ..Tokens::default() };
        assert_eq!(tokens_of(&[start, restated, end]), expected);
        assert_eq!(tokens_of(&[end, start, restated, start]), expected);
    }

    fn statement() -> impl Strategy<Value = Stated> {
        let count = || proptest::option::of(0_u64..5);
        (count(), count(), count(), count(), count(), count()).prop_map(
            |(input, cache_write, cache_read, tool_prompt, output, reasoning)| Stated {
                input,
                cache_write,
                cache_read,
                tool_prompt,
                output,
                reasoning,
                ..Stated::default()
            },
        )
    }

    proptest! {
        // small counts, so that statements tie often
        #![proptest_config(ProptestConfig::with_cases(10_000))]
        #[test]
        fn order_and_repetition_do_not_matter(
            (statements, shuffled) in proptest::collection::vec(statement(), 1..8)
                .prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle())),
            again in any::<prop::sample::Index>(),
        ) {
            let once = tokens_of(&statements);
            let late = again.get(&statements);
            prop_assert_eq!(tokens_of(&[&shuffled[..], &[*late]].concat()), once);
            let most = statements.iter().filter_map(|stated| stated.output).max();
            prop_assert_eq!(once.output, most.unwrap_or_default(), "the highest cumulative output");
        }
    }
}
