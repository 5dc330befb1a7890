//! An endless, seeded grammar of short children's stories, the text that Danlu trains on when given none.
//!
//! The plots are plain text in `story/*.txt`; `story/grammar.rs` explains their notation. A story remembers what it
//! has said: names, pronouns, colours, places and causes stay the same to the end, so that a small model has
//! something to learn beyond spelling.

mod cast;
mod grammar;

use std::sync::OnceLock;

use crate::base::Rng;
use grammar::Grammar;

const WORDS: &str = include_str!("story/words.txt");
const PLOTS: [&str; 5] = [
    include_str!("story/lost.txt"),
    include_str!("story/weather.txt"),
    include_str!("story/friends.txt"),
    include_str!("story/learning.txt"),
    include_str!("story/wonder.txt"),
];

/// The stream of the seed's random numbers that stories are drawn from ("story" in ASCII).
const STREAM: u64 = 0x73_746F_7279;

/// Longer stories leave too little of a training window to the next one.
const MOST_WORDS: usize = 160;

fn word_count(story: &str) -> usize {
    story.split(|c: char| !c.is_ascii_alphabetic()).filter(|word| !word.is_empty()).count()
}

fn grammar() -> &'static Grammar {
    static GRAMMAR: OnceLock<Grammar> = OnceLock::new();
    // The text is embedded, and a test tells every plot: this cannot fail on anybody's input.
    GRAMMAR.get_or_init(|| Grammar::parse(WORDS, &PLOTS).expect("the embedded plots parse"))
}

/// An endless iterator of stories in plain ASCII. Story `i` is a function of (seed, i) alone.
#[derive(Debug, Clone)]
pub struct StoryGrammar {
    seed: u64,
    next: u64,
}

impl StoryGrammar {
    /// Starts at story 0 of this seed.
    pub fn new(seed: u64) -> Self {
        StoryGrammar { seed, next: 0 }
    }

    /// Story number `index`: 60 to 160 words in paragraphs parted by an empty line, with no line end at the close.
    pub fn story(&self, index: u64) -> String {
        let grammar = grammar();
        let mut rng = Rng::new(self.seed ^ STREAM, index);
        let plot = rng.below(grammar.plots.len());
        // The longest alternatives of a plot can add up to too much: tell it again.
        loop {
            let story = grammar.tell(plot, &mut rng).expect("every slot of the embedded plots has a value");
            if word_count(&story) <= MOST_WORDS {
                return story;
            }
        }
    }

    /// The number of different plots.
    pub fn plot_count() -> usize {
        grammar().plots.len()
    }

    /// A name for the text that this version of the grammar makes: changes whenever a plot does, for cache keys.
    pub fn content_hash() -> u64 {
        let mut hasher = super::hash::Hasher::new();
        // The code decides as well: a new order of drawing makes other stories of the same plots.
        let code = [include_str!("story/cast.rs"), include_str!("story/grammar.rs"), include_str!("story.rs")];
        for text in PLOTS.iter().chain(&[WORDS]).chain(&code) {
            hasher.update(text.as_bytes());
        }
        hasher.finish()
    }
}

impl Iterator for StoryGrammar {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        let story = self.story(self.next);
        self.next += 1;
        Some(story)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;

    fn words(story: &str) -> impl Iterator<Item = String> {
        story.split(|c: char| !c.is_ascii_alphabetic()).filter(|w| !w.is_empty()).map(str::to_ascii_lowercase)
    }

    #[test]
    fn a_story_is_a_function_of_seed_and_index() {
        let stories: Vec<_> = StoryGrammar::new(7).take(50).collect();
        assert_eq!(stories[31], StoryGrammar::new(7).story(31));
        assert_ne!(stories[31], StoryGrammar::new(8).story(31));
        assert_eq!(stories.iter().collect::<HashSet<_>>().len(), 50);
    }

    #[test]
    fn every_story_is_whole_and_of_the_promised_size() {
        for (index, story) in StoryGrammar::new(1).take(4000).enumerate() {
            assert!(story.bytes().all(|b| b == b'\n' || (0x20..0x7f).contains(&b)), "not ASCII: {story}");
            let count = word_count(&story);
            assert!((60..=MOST_WORDS).contains(&count), "story {index} has {count} words: {story}");
            assert!(!story.contains(['[', ']', '{', '}', '|', '@', ';']), "unfinished: {story}");
            assert!(story.matches('"').count() % 2 == 0, "an open quote: {story}");
            for bad in ["  ", " .", " ,", "..", " a a", " a e", " a i", " a o", " an b", " the the ", ",.", "!.", "?."]
            {
                assert!(!story.contains(bad), "{bad:?} in story {index}: {story}");
            }
            assert!(story.ends_with(['.', '!', '"']), "no end: {story}");
        }
    }

    #[test]
    fn every_plot_is_told_and_the_vocabulary_is_small() {
        let mut counts: HashMap<String, usize> = HashMap::new();
        let mut total = 0;
        for story in StoryGrammar::new(2).take(6000) {
            for word in words(&story) {
                *counts.entry(word).or_default() += 1;
                total += 1;
            }
        }
        println!("{} plots, {} words, {} a story", StoryGrammar::plot_count(), counts.len(), total / 6000);
        assert!(StoryGrammar::plot_count() >= 12);
        assert!((500..=900).contains(&counts.len()), "{} words", counts.len());
        for plot in 0..StoryGrammar::plot_count() {
            let short = |i| word_count(&grammar().tell(plot, &mut Rng::new(0, i)).unwrap()) <= MOST_WORDS;
            let kept = (0..500).filter(|&i| short(i)).count();
            println!("{}: {kept} of 500", grammar().plots[plot].name);
            assert!(kept > 100, "{} is mostly too long", grammar().plots[plot].name);
        }
    }
}
