//! Who plays in a story: names, kinds, pronouns and where they live.

use crate::base::Rng;

/// What a plot asks of a role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// A child or an animal.
    Any,
    /// A boy or a girl.
    Child,
    /// An animal.
    Animal,
    /// The plot has nobody in this role.
    None,
}

const BOYS: [&str; 8] = ["Tom", "Ben", "Sam", "Max", "Leo", "Finn", "Jack", "Tim"];
const GIRLS: [&str; 8] = ["Mia", "Lily", "Anna", "Emma", "Lucy", "Nora", "Ella", "Sue"];
const ANIMALS_HE: [&str; 6] = ["Bruno", "Oscar", "Toby", "Hugo", "Rusty", "Felix"];
const ANIMALS_SHE: [&str; 6] = ["Daisy", "Rosie", "Hazel", "Luna", "Bella", "Willow"];

/// Each kind of animal, and where its house stands.
const ANIMALS: [(&str, &str); 10] = [
    ("bear", "in the forest"),
    ("rabbit", "under the hill"),
    ("fox", "at the edge of the forest"),
    ("mouse", "under an old tree"),
    ("duck", "by the pond"),
    ("frog", "by the pond"),
    ("squirrel", "in a tall tree"),
    ("hedgehog", "under a hedge"),
    ("kitten", "near the barn"),
    ("puppy", "near the barn"),
];
const CHILDREN_NEAR: [&str; 4] = ["near the forest", "by the river", "at the edge of the village", "on a green hill"];

/// One character. Pronouns follow from `female`.
#[derive(Debug, Clone)]
pub(super) struct Character {
    pub name: &'static str,
    pub kind: &'static str,
    pub near: &'static str,
    female: bool,
    animal: bool,
}

impl Character {
    /// The text of `name.field`, or nothing for a field that characters do not have.
    pub fn field(&self, field: &str) -> Option<String> {
        let by_gender = |he: &str, she: &str| Some(if self.female { she } else { he }.to_string());
        match field {
            "" => Some(self.name.to_string()),
            "he" => by_gender("he", "she"),
            "him" => by_gender("him", "her"),
            "his" => by_gender("his", "her"),
            "kind" => Some(self.kind.to_string()),
            "near" => Some(self.near.to_string()),
            "who" if self.animal => Some(format!("{} the {}", self.name, self.kind)),
            "who" => Some(self.name.to_string()),
            _ => None,
        }
    }
}

/// Draws hero and friend: never of one gender, so that a pronoun always has one meaning, nor of one kind of animal.
pub(super) fn draw(rng: &mut Rng, hero: Role, friend: Role) -> (Character, Character) {
    let female = rng.below(2) == 1;
    let first = one(rng, hero, female, "");
    let second = one(rng, friend, !female, first.kind);
    (first, second)
}

fn one(rng: &mut Rng, role: Role, female: bool, other: &str) -> Character {
    let animal = match role {
        Role::Child => false,
        Role::Animal => true,
        Role::Any | Role::None => rng.below(2) == 1,
    };
    if !animal {
        let (names, kind) = if female { (GIRLS, "girl") } else { (BOYS, "boy") };
        let name = names[rng.below(names.len())];
        return Character { name, kind, near: CHILDREN_NEAR[rng.below(CHILDREN_NEAR.len())], female, animal };
    }
    let names = if female { ANIMALS_SHE } else { ANIMALS_HE };
    let name = names[rng.below(names.len())];
    let kinds: Vec<_> = ANIMALS.iter().filter(|(kind, _)| *kind != other).collect();
    let &&(kind, near) = &kinds[rng.below(kinds.len())];
    Character { name, kind, near, female, animal }
}
