//! Builtin functions whose cost a single call can choose, or that panic on some arguments: bounded ones take their
//! places. A call out of bounds ends the evaluation with an error.

use anyhow::{bail, ensure};
use regorus::{Engine, Value};

/// Registers the bounded functions, which the interpreter prefers to its own.
///
/// # Errors
/// Where the interpreter does not take one.
pub(super) fn bound(engine: &mut Engine) -> anyhow::Result<()> {
    engine.add_extension("numbers.range".to_owned(), 2, Box::new(range))?;
    engine.add_extension("numbers.range_step".to_owned(), 3, Box::new(range_step))?;
    engine.add_extension("bits.lsh".to_owned(), 2, Box::new(shift_left))?;
    engine.add_extension("sprintf".to_owned(), 2, Box::new(sprintf))?;
    engine.add_extension("replace".to_owned(), 3, Box::new(replace))?;
    engine.add_extension("strings.replace_n".to_owned(), 2, Box::new(replace_n))?;
    engine.add_extension("regex.replace".to_owned(), 3, Box::new(regex_replace))?;
    engine.add_extension("concat".to_owned(), 2, Box::new(concat))?;
    engine.add_extension("array.concat".to_owned(), 2, Box::new(array_concat))
}

/// The interpreter's own make a text as long as the product of their arguments' lengths.
fn replace(parameters: Vec<Value>) -> anyhow::Result<Value> {
    let [Value::String(text), Value::String(old), Value::String(new)] = parameters.as_slice() else {
        bail!("replace takes three texts")
    };
    bounded(text.len(), new.len())?;
    Ok(Value::from(text.replace(&**old, new)))
}

fn replace_n(parameters: Vec<Value>) -> anyhow::Result<Value> {
    let [Value::Object(patterns), Value::String(text)] = parameters.as_slice() else {
        bail!("strings.replace_n takes an object and a text")
    };
    let mut text = text.to_string();
    for (old, new) in patterns.iter() {
        let (Value::String(old), Value::String(new)) = (old, new) else { bail!("strings.replace_n takes texts") };
        bounded(text.len(), new.len())?;
        text = text.replace(&**old, new);
    }
    Ok(Value::from(text))
}

fn regex_replace(parameters: Vec<Value>) -> anyhow::Result<Value> {
    let [Value::String(text), _, Value::String(new)] = parameters.as_slice() else {
        bail!("regex.replace takes three texts")
    };
    // Every reference to a group may bring the whole text again.
    let groups = new.matches('$').count();
    bounded(text.len(), new.len() + groups * text.len())?;
    call("regex.replace(input[0], input[1], input[2])", parameters)
}

fn concat(parameters: Vec<Value>) -> anyhow::Result<Value> {
    let (Some(Value::String(delimiter)), Some(parts)) = (parameters.first(), parameters.get(1)) else {
        bail!("concat takes a text and texts")
    };
    let parts: Vec<&Value> = match parts {
        Value::Array(parts) => parts.iter().collect(),
        Value::Set(parts) => parts.iter().collect(),
        _ => bail!("concat takes a list or a set of texts"),
    };
    let text = |part: &&Value| match part {
        Value::String(text) => Ok(text.to_string()),
        _ => Err(anyhow::anyhow!("concat takes texts")),
    };
    bounded(parts.len(), delimiter.len())?;
    let texts = parts.iter().map(text).collect::<anyhow::Result<Vec<_>>>()?;
    ensure!(texts.iter().map(String::len).sum::<usize>() <= MAX_TEXT, "texts are bounded to {MAX_TEXT} bytes");
    Ok(Value::from(texts.join(delimiter)))
}

fn array_concat(parameters: Vec<Value>) -> anyhow::Result<Value> {
    let [Value::Array(first), Value::Array(second)] = parameters.as_slice() else {
        bail!("array.concat takes two lists")
    };
    ensure!(first.len() + second.len() <= MAX_LIST, "lists are bounded to {MAX_LIST} elements");
    Ok(Value::from(first.iter().chain(second.iter()).cloned().collect::<Vec<_>>()))
}

/// Whether a text of `length` bytes may get `inserted` bytes at each of them.
fn bounded(length: usize, inserted: usize) -> anyhow::Result<()> {
    let longest = length.saturating_add((length + 1).saturating_mul(inserted));
    ensure!(longest <= MAX_TEXT, "texts are bounded to {MAX_TEXT} bytes");
    Ok(())
}

/// The interpreter's own reserves memory for as many numbers as are asked for.
fn range(parameters: Vec<Value>) -> anyhow::Result<Value> {
    let [from, to] = parameters.as_slice() else { bail!("numbers.range takes two numbers") };
    let (from, to) = (from.as_i64()?, to.as_i64()?);
    ensure!(from.abs_diff(to) < MAX_RANGE, "numbers.range is bounded to {MAX_RANGE} numbers");
    let numbers: Vec<Value> = (from.min(to)..=from.max(to)).map(Value::from).collect();
    Ok(Value::from(if from <= to { numbers } else { numbers.into_iter().rev().collect() }))
}

/// The interpreter's own divides by the step, whatever it is.
fn range_step(_: Vec<Value>) -> anyhow::Result<Value> {
    bail!("numbers.range_step is not available: use numbers.range")
}

/// The interpreter's own shifts by up to 2^32 bits.
fn shift_left(parameters: Vec<Value>) -> anyhow::Result<Value> {
    let bits = parameters.get(1).and_then(|bits| bits.as_i64().ok());
    ensure!(bits.is_some_and(|bits| (0..=MAX_SHIFT).contains(&bits)), "bits.lsh is bounded to {MAX_SHIFT} bits");
    call("bits.lsh(input[0], input[1])", parameters)
}

/// The interpreter's own pads to any width, and panics on digits other than ASCII's.
fn sprintf(parameters: Vec<Value>) -> anyhow::Result<Value> {
    let Some(Value::String(format)) = parameters.first() else { bail!("sprintf takes a format first") };
    let mut characters = format.chars().peekable();
    while let Some(character) = characters.next() {
        // Read as the interpreter reads it, verbs included: one of them may be a percent sign.
        let first = if character == '%' { characters.next() } else { None };
        let Some(first) = first.filter(|first| *first == '.' || first.is_numeric()) else { continue };
        let mut width = if first == '.' { Some(0) } else { first.to_digit(10) };
        while let Some(digit) = characters.next_if(|next| next.is_numeric()) {
            let wider = |width: u32| Some(width * 10 + digit.to_digit(10)?).filter(|width| *width <= MAX_WIDTH);
            width = width.and_then(wider);
        }
        ensure!(width.is_some(), "sprintf is bounded to widths up to {MAX_WIDTH}, in the digits 0 to 9");
        characters.next();
    }
    call("sprintf(input[0], input[1])", parameters)
}

/// Calls the interpreter's own function.
fn call(expression: &str, parameters: Vec<Value>) -> anyhow::Result<Value> {
    let mut engine = Engine::new();
    engine.set_input(Value::from(parameters));
    let results = engine.eval_query(expression.to_owned(), false)?;
    let value = results.result.first().and_then(|result| result.expressions.first());
    Ok(value.map_or(Value::Undefined, |expression| expression.value.clone()))
}

const MAX_RANGE: u64 = 10_000;
const MAX_SHIFT: i64 = 4096;
const MAX_WIDTH: u32 = 1000;
/// Some policies join the digests of many images.
const MAX_TEXT: usize = 4 << 20;
const MAX_LIST: usize = 100_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn format(format: &str, argument: Value) -> anyhow::Result<Value> {
        sprintf(vec![Value::from(format), Value::from(vec![argument])])
    }

    #[test]
    fn formats_have_the_interpreters_results_within_their_bounds() {
        for (text, expected) in [("%d%%", "7%"), ("%5d", "    7"), ("%05d", "00007"), ("%%%d", "%7"), ("%v", "7")] {
            assert_eq!(format(text, Value::from(7)).unwrap(), Value::from(expected), "{text}");
        }
        for wide in ["%1001d", "%.99999999999f", "%01234567d", "%\u{0663}d", "%1\u{0663}d", "%%%5000d"] {
            assert!(format(wide, Value::from(7)).unwrap_err().to_string().contains("bounded"), "{wide}");
        }
        assert!(sprintf(vec![Value::from(1), Value::from(2)]).is_err());
    }

    #[test]
    fn texts_can_t_be_multiplied_without_end() {
        let text = |n: usize| Value::from("a".repeat(n));
        assert_eq!(replace(vec![text(2), Value::from("a"), Value::from("bc")]).unwrap(), Value::from("bcbc"));
        assert!(replace(vec![text(4000), Value::from("a"), text(4000)]).is_err());
        let pairs: Value = serde_json::json!({ "a": "b".repeat(4000) }).into();
        assert!(replace_n(vec![pairs, text(4000)]).is_err());
        let small: Value = serde_json::json!({ "a": "b" }).into();
        assert_eq!(replace_n(vec![small, text(2)]).unwrap(), Value::from("bb"));
        let regex = |n: usize, new: &str| regex_replace(vec![text(n), Value::from("a"), Value::from(new)]);
        assert_eq!(regex(2, "x").unwrap(), Value::from("xx"));
        assert!(regex(4000, &"$0".repeat(2000)).is_err());
        let list = |n: usize| Value::from(vec![text(1); n]);
        assert_eq!(concat(vec![Value::from("-"), list(2)]).unwrap(), Value::from("a-a"));
        assert!(concat(vec![text(4000), list(4000)]).is_err());
        assert_eq!(array_concat(vec![list(1), list(1)]).unwrap(), list(2));
        assert!(array_concat(vec![list(60_000), list(60_000)]).is_err());
    }

    #[test]
    fn shifts_and_ranges_are_bounded() {
        let shift = |by: Value| shift_left(vec![Value::from(1), by]);
        assert_eq!(shift(Value::from(4)).unwrap(), Value::from(16));
        for by in [Value::from(5000), Value::from(-1), Value::from("1"), Value::from(1_u64 << 40)] {
            assert!(shift(by).is_err());
        }
        let span = |from: i64, to: i64| range(vec![Value::from(from), Value::from(to)]);
        assert_eq!(span(3, 1).unwrap(), Value::from(vec![Value::from(3), Value::from(2), Value::from(1)]));
        assert!(span(1, 30_000_000).is_err());
        assert!(span(i64::MIN, i64::MAX).is_err());
    }
}
