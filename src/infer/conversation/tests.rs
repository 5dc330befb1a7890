//! What of a conversation goes before the model; the model itself is at work in tests/cli.

use super::*;

fn talk(turns: &[(&str, usize)]) -> Vec<Message> {
    turns.iter().map(|(role, tokens)| Message::new(role, &"x".repeat(*tokens))).collect()
}

/// One token a letter.
fn letters(messages: &[Message]) -> Result<Vec<u32>> {
    Ok(messages.iter().flat_map(|m| m.content().bytes().map(u32::from).collect::<Vec<_>>()).collect())
}

#[test]
fn the_oldest_turns_go_and_the_system_message_stays() {
    let messages =
        talk(&[("system", 5), ("user", 20), ("assistant", 20), ("user", 20), ("assistant", 20), ("user", 10)]);
    let fit = |context, dropped| fit(&messages, dropped, context, 10, letters).map(|(t, d)| (t.len(), d));
    assert_eq!(fit(105, 0).unwrap(), (95, 0));
    assert_eq!(fit(105, 2).unwrap(), (55, 2), "what was left out stays out");
    // Below 105 half of the context is set free: 95 and 55 are too many then, 15 are not.
    assert_eq!(fit(104, 0).unwrap(), (15, 4));
    assert_eq!(fit(120, 0).unwrap(), (95, 0));
    // The last message must go in, and is asked for no more than to leave room for one token.
    assert_eq!(fit(16, 0).unwrap(), (15, 4));
    assert_eq!(
        fit(15, 0).unwrap_err().to_string(),
        "the message is too long: with what must stand before it, it has 15 tokens, and the context holds 15; shorten it, \
         or give --context"
    );
}

#[test]
fn turns_without_questions_are_not_torn_apart() {
    let messages = talk(&[("user", 9), ("assistant", 9), ("tool", 9), ("assistant", 9), ("user", 9)]);
    let (tokens, dropped) = fit(&messages, 0, 30, 4, letters).unwrap();
    assert_eq!((tokens.len(), dropped), (9, 4));
    assert_eq!(keep(&messages, 4)[0].role(), "user");
}

#[test]
fn an_answer_begins_with_a_word() {
    let mut heard = Vec::new();
    let mut receive = |text: &str| {
        heard.extend(Some(text.to_string()).filter(|text| !text.is_empty()));
        text != "stop"
    };
    let mut speech = Speech { text: String::new(), receive: &mut receive };
    assert!(speech.show(" \n") && speech.show(" Hello") && speech.show(",\n") && !speech.show("stop"));
    assert_eq!(speech.text, "Hello,\nstop");
    assert_eq!(heard, ["Hello", ",\n", "stop"]);
}
