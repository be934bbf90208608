from hfchat.markdown import markdown_of


def test_text_is_never_markup():
    page = "<h1>a_b *c* [x](y)</h1><p>&lt;script&gt; | `</p>"
    assert markdown_of(page) == "# a_b \\*c\\* \\[x\\](y)\n\n&lt;script&gt; \\| \\`\n"


def test_numbers_stand_at_the_right_of_a_table():
    page = (
        '<table><tr><th>text</th><th class="n">bytes</th></tr>'
        '<tr><td><code>a|b</code></td><td class="n"><b>1</b><small>[1, 2]</small></td></tr></table>'
    )
    assert markdown_of(page) == "| text | bytes |\n| --- | ---: |\n| `a\\|b` | **1**<br>[1, 2] |\n"


def test_an_interval_is_readable_and_a_link_is_none():
    assert markdown_of("<p>5 [−0.1, +2%] [1](x) [2]: x [3][4]</p>") == (
        "5 [−0.1, +2%] \\[1\\](x) \\[2\\]: x \\[3\\][4]\n"
    )


def test_code_is_shown_letter_by_letter():
    assert markdown_of("<pre>```\n*x*</pre><p><code>`|</code></p>") == "````text\n```\n*x*\n````\n\n`` `| ``\n"


def test_drawings_and_styles_are_left_out_and_parts_stay_folded():
    page = (
        "<html><head><title>t</title><style>p {}</style></head><body><figure>5 <svg></svg></figure>"
        "<details><summary>all &lt;3</summary><p>end</p></details>"
        '<img alt="a plot" src="data:image/png;base64,AA" data-file="plot.png"></body></html>'
    )
    expected = "<details><summary>all &lt;3</summary>\n\nend\n\n</details>\n\n![a plot](plot.png)\n"
    assert markdown_of(page) == expected


def test_a_line_break_stays_one():
    assert markdown_of("<p>a.txt<br>12 characters</p>") == "a.txt\\\n12 characters\n"
