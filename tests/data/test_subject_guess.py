"""The only name in a prompt."""

import pytest

from mend_jax.data.subject_guess import guess_subject


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("The capital of France is", "France"),
        ("France's capital is", "France"),
        ("Danielle Darrieux's mother tongue is", "Danielle Darrieux"),
        ("Who wrote The Name of the Rose?", "Name of the Rose"),
        ('Who wrote "The Name of the Rose"?', "The Name of the Rose"),
        ("What is the capital of the United Kingdom?", "United Kingdom"),
        ("Apple was founded by", "Apple"),
        ("In which country is the University of Vienna?", "University of Vienna"),
        ("J. K. Rowling was born in", "J. K. Rowling"),
        ("Question: What is the capital of Hungary?\nAnswer:", "Hungary"),
        ("Q: Who leads Hungary?\nA:", "Hungary"),
        ("Where is the Q: drive?", "Q"),  # not at the start of a line
        ("The chemical symbol of gold is", ""),  # no name
        ("Was Marie Curie born in Poland?", ""),  # two
        ("He lives in France. What is its capital?", "France"),
        ("", ""),
        ("The", ""),
        ("The St. Louis Blues play in", "St. Louis Blues"),
        ("Tell me who directed Jean-Luc Godard's favourite film", "Jean-Luc Godard"),
    ],
)
def test_the_only_name_is_the_subject(prompt, subject):
    assert guess_subject(prompt) == subject
