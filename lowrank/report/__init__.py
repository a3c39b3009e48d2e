"""What a study's runs say: tables, figures, claims, and the pages that show them."""
