//! Scales: round ticks, enough digits, and the part of an axis that is worth its room.

/// About `n` round numbers that cover low to high, and how many decimals they need.
pub fn ticks(low: f64, high: f64, n: usize) -> (Vec<f64>, usize) {
    let span = high - low;
    if !span.is_finite() || span <= 0.0 {
        return (vec![low], 2);
    }
    let raw = span / n as f64;
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .map(|m| m * power)
        .into_iter()
        .find(|s| *s >= raw)
        .unwrap_or(10.0 * power);
    let decimals = (-step.log10().floor()).max(0.0) as usize;
    let first = (low / step - 1e-9).ceil() as i64;
    let last = (high / step + 1e-9).floor() as i64;
    ((first..=last).map(|i| i as f64 * step).collect(), decimals)
}

/// Decimals with which values that differ read differently: two digits of the smallest gap, from
/// `least` to 9.
pub fn decimals(values: &[f64], least: usize) -> usize {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|x| x.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let gaps = sorted.windows(2).map(|w| w[1] - w[0]).filter(|gap| *gap > 0.0);
    let smallest = gaps.fold(f64::INFINITY, f64::min);
    if !smallest.is_finite() {
        return least;
    }
    let needed = 1.0 - smallest.log10().floor();
    (needed.max(0.0) as usize).clamp(least, 9)
}

/// A number with at least three digits that say something: `1.234`, `0.0123`, `1.2e-7`.
pub fn fitting(x: f64) -> String {
    let size = x.abs();
    if size == 0.0 || size >= 0.1 {
        format!("{x:.3}")
    } else if size >= 1e-6 {
        let decimals = (2.0 - size.log10().floor()) as usize;
        format!("{x:.decimals$}")
    } else {
        format!("{x:.1e}")
    }
}

/// How far from the middle an end may lie, in the units of [`window`].
const FAR: f64 = 4.0;

/// The part of an axis that shows all `extents` (low, high) but outliers: what lies further from
/// the median than four times what is usual, be that the distance between them or their own width.
/// One that is far off would leave no room to tell the others apart. None without any.
pub fn window(extents: &[(f64, f64)]) -> Option<(f64, f64)> {
    let finite = |(low, high): &(f64, f64)| low.is_finite() && high.is_finite();
    let all: Vec<(f64, f64)> = extents.iter().copied().filter(finite).collect();
    let sorted = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values
    };
    let middles = sorted(all.iter().map(|(low, high)| (low + high) / 2.0).collect());
    let n = middles.len();
    let middle = (middles.get(n.checked_sub(1)? / 2)? + middles[n / 2]) / 2.0;
    let usual = |values: Vec<f64>| sorted(values)[(n - 1) / 2];
    let unit = usual(middles.iter().map(|m| (m - middle).abs()).collect())
        .max(usual(all.iter().map(|(low, high)| high - low).collect()));
    let whole = |(a, b): (f64, f64), (low, high): &(f64, f64)| (a.min(*low), b.max(*high));
    let none = (f64::INFINITY, f64::NEG_INFINITY);
    if unit == 0.0 {
        return Some(all.iter().fold(none, whole));
    }
    let (low, high) = (middle - FAR * unit, middle + FAR * unit);
    let near = all.iter().filter(|e| e.1 >= low && e.0 <= high);
    let shown = near.map(|e| (e.0.max(low), e.1.min(high)));
    Some(shown.fold(none, |a, e| whole(a, &e)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        let (ys, decimals) = ticks(4.43, 4.97, 6);
        assert_eq!((ys.len(), decimals), (5, 1));
        assert!((ys[0] - 4.5).abs() < 1e-12 && (ys[4] - 4.9).abs() < 1e-12, "{ys:?}");
        assert_eq!(ticks(0.0, 1000.0, 5), (vec![0.0, 200.0, 400.0, 600.0, 800.0, 1000.0], 0));
        assert_eq!(ticks(2.0, 2.0, 5).0, [2.0]);
        let (zs, decimals) = ticks(-0.012, 0.031, 6);
        assert!(zs.contains(&0.0) && decimals == 2, "{zs:?}");
    }

    #[test]
    fn digits_are_enough_to_tell_neighbours_apart() {
        assert_eq!(decimals(&[1.0, 2.0, 3.0], 2), 2);
        assert_eq!(decimals(&[0.001, 0.0012, 5.0], 2), 5);
        assert_eq!(decimals(&[0.5, 0.5], 2), 2, "equal values need none");
        assert_eq!(decimals(&[0.0, 1e-30], 2), 9);
        assert_eq!(
            [0.0, 12.3456, 0.012_345, 1.234e-7].map(fitting),
            ["0.000", "12.346", "0.0123", "1.2e-7"]
        );
        assert_eq!(fitting(-0.000_123_4), "-0.000123");
    }

    #[test]
    fn an_outlier_does_not_flatten_the_others() {
        // Three intervals and one far away, or much wider.
        let near = [(4.50, 4.52), (4.53, 4.54), (4.49, 4.51)];
        let all = window(&near).unwrap();
        assert_eq!(all, (4.49, 4.54));
        assert_eq!(window(&[&near[..], &[(8.9, 9.1)]].concat()).unwrap(), all);
        let (low, high) = window(&[&near[..], &[(3.0, 6.0)]].concat()).unwrap();
        assert!(low > 4.3 && high < 4.7 && low < 4.49 && high > 4.54, "{low} {high}");
    }

    #[test]
    fn what_differs_without_an_outlier_is_shown_whole() {
        assert_eq!(window(&[(1.0, 1.1), (5.0, 5.1)]).unwrap(), (1.0, 5.1), "two are no crowd");
        let even: Vec<(f64, f64)> = (0..9).map(|i| (f64::from(i), f64::from(i))).collect();
        assert_eq!(window(&even).unwrap(), (0.0, 8.0));
        assert_eq!(window(&[(2.0, 2.0), (2.0, 2.0), (7.0, 7.0)]).unwrap(), (2.0, 7.0));
        assert_eq!(window(&[(1.0, f64::NAN), (3.0, 4.0)]).unwrap(), (3.0, 4.0));
        assert_eq!(window(&[]), None);
    }
}
