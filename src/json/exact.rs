//! JSON that keeps every bit of an f64.
//!
//! serde_json's default parser is fast and may miss the last bit of a long number. Most numbers
//! survive; those that would not are stored as strings `"f64:..."`, which the standard library
//! reads exactly.

use serde_json::{Number, Value};

const MARK: &str = "f64:";

/// Replaces the floats that reading back would change.
pub fn freeze(value: Value) -> Value {
    map(value, &|leaf| match &leaf {
        Value::Number(n) if n.is_f64() => {
            let read_back = serde_json::from_str::<Value>(&n.to_string()).ok();
            let same = read_back.and_then(|v| v.as_f64()).map(f64::to_bits)
                == n.as_f64().map(f64::to_bits);
            // `{:?}` prints the shortest decimal that reads back as the same float.
            if same {
                leaf
            } else {
                Value::String(format!("{MARK}{:?}", n.as_f64().unwrap_or(f64::NAN)))
            }
        }
        _ => leaf,
    })
}

/// Undoes [`freeze`].
pub fn thaw(value: Value) -> Value {
    map(value, &|leaf| {
        let number = leaf.as_str().and_then(|s| s.strip_prefix(MARK)).and_then(|s| s.parse().ok());
        number.and_then(Number::from_f64).map_or(leaf, Value::Number)
    })
}

fn map(value: Value, change: &dyn Fn(Value) -> Value) -> Value {
    match value {
        Value::Array(items) => items.into_iter().map(|v| map(v, change)).collect(),
        Value::Object(fields) => {
            Value::Object(fields.into_iter().map(|(k, v)| (k, map(v, change))).collect())
        }
        leaf => change(leaf),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Rng, Stream};
    use serde_json::json;

    #[test]
    fn every_bit_survives_a_trip_through_text() {
        let rng = Rng::new(3, Stream::Init);
        let floats: Vec<f64> =
            (0..5000).map(|i| f64::from_bits(rng.bits(0, i))).filter(|x| x.is_finite()).collect();
        let small: Vec<f64> = (0..5000).map(|i| rng.normal(1, i)).collect();
        let value = json!({ "any": floats, "small": [small], "text": "f", "count": u64::MAX, "none": null, "yes": true });
        let text = freeze(value.clone()).to_string();
        let back = thaw(serde_json::from_str(&text).unwrap());
        assert_eq!(back, value);
        let bits = |v: &Value| {
            v["any"]
                .as_array()
                .unwrap()
                .iter()
                .map(|x| x.as_f64().unwrap().to_bits())
                .collect::<Vec<_>>()
        };
        assert_eq!(bits(&back), bits(&value));
    }

    #[test]
    fn ordinary_numbers_stay_numbers() {
        let value = json!({ "lr": 6e-4, "alpha": 0.1, "seconds": 12.5, "flops": 3e15 });
        assert_eq!(freeze(value.clone()), value);
    }
}
