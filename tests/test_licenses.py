from hfchat.licenses import license_entry


def test_licences_get_the_hub_s_names():
    assert license_entry(["MIT License", "mit"]) == {"license": "mit"}
    assert license_entry(["GPL-3.0-or-later", "Apache-2.0"]) == {"license": ["apache-2.0", "gpl-3.0"]}
    assert license_entry([]) == {"license": "unknown"}


def test_a_licence_that_the_hub_does_not_know_gets_a_name():
    assert license_entry(["House Licence 2"]) == {"license": "other", "license_name": "house-licence-2"}
    assert license_entry(["mit", "House Licence 2"]) == {"license": "other", "license_name": "several"}
