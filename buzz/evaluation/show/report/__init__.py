"""Reports of finished and unfinished runs: report.md, report.html and pictures, from run folders alone.

Read `write`, which makes a report, then what it uses: `folders` reads runs; `pictures` draws them, with
`lines`; `markdown` is report.md; `page` is report.html, made of `fragments` with `tables` and, for its scripts in
assets/, `page_data` with `answers`.
"""
