//! Dates in chat templates: Python's `strftime` in English, in UTC.

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// Year, month from 1, day from 1 of a number of days since 1970-01-01, in the Gregorian calendar: by eras of 400 years
/// that begin in March, so that a leap day is a year's last.
fn civil(days: i64) -> (i64, usize, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day = shifted.rem_euclid(146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let date = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + i64::from(month <= 2), month as usize, date)
}

/// Writes a moment (seconds since 1970) in a format. What is no code of `strftime` stands as it is.
pub(super) fn strftime(format: &str, now: i64) -> String {
    // Beyond this the calendar's arithmetic would overflow, and no clock points there.
    let now = now.clamp(-62_135_596_800, 253_402_300_799);
    let (days, second) = (now.div_euclid(86_400), now.rem_euclid(86_400));
    let (year, month, date) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let of_year = (0..366).find(|back| civil(days - back).1 == 1 && civil(days - back).2 == 1).unwrap_or(0) + 1;
    let (month_name, day_name) = (MONTHS[month - 1], DAYS[days.rem_euclid(7) as usize]);
    let half = if hour % 12 == 0 { 12 } else { hour % 12 };
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut code = chars.next();
        let bare = code == Some('-');
        if bare {
            code = chars.next();
        }
        let number = |value: i64, width: usize| if bare { value.to_string() } else { format!("{value:0width$}") };
        match code {
            Some('Y') => out.push_str(&number(year, 4)),
            Some('y') => out.push_str(&number(year.rem_euclid(100), 2)),
            Some('m') => out.push_str(&number(month as i64, 2)),
            Some('d') => out.push_str(&number(date, 2)),
            Some('e') => out.push_str(&format!("{date:2}")),
            Some('j') => out.push_str(&number(of_year, 3)),
            Some('H') => out.push_str(&number(hour, 2)),
            Some('I') => out.push_str(&number(half, 2)),
            Some('M') => out.push_str(&number(minute, 2)),
            Some('S') => out.push_str(&number(second, 2)),
            Some('p') => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            Some('B') => out.push_str(month_name),
            Some('b' | 'h') => out.push_str(&month_name[..3]),
            Some('A') => out.push_str(day_name),
            Some('a') => out.push_str(&day_name[..3]),
            Some('F') => out.push_str(&format!("{year:04}-{month:02}-{date:02}")),
            Some('T') => out.push_str(&format!("{hour:02}:{minute:02}:{second:02}")),
            Some('z') => out.push_str("+0000"),
            Some('Z') => out.push_str("UTC"),
            Some('%') => out.push('%'),
            Some(other) => out.extend(['%', other]),
            None => out.push('%'),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Moments and dates from `date -u -d @SECONDS`.
    #[test]
    fn dates_are_those_of_the_calendar() {
        for (now, expected) in [
            (0, "1970-01-01 Thursday 001 12 AM"),
            (951_782_400, "2000-02-29 Tuesday 060 12 AM"),
            (1_770_127_506, "2026-02-03 Tuesday 034 02 PM"),
            (1_735_689_599, "2024-12-31 Tuesday 366 11 PM"),
            (-1, "1969-12-31 Wednesday 365 11 PM"),
            (4_107_542_400, "2100-03-01 Monday 060 12 AM"),
        ] {
            assert_eq!(strftime("%Y-%m-%d %A %j %I %p", now), expected);
        }
        assert_eq!(strftime("%-d %e %h %a %F %T %y %q %", 951_782_400), "29 29 Feb Tue 2000-02-29 00:00:00 00 %q %");
        assert_eq!(strftime("%Y", i64::MAX), "9999");
    }
}
