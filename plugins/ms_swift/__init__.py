"""What knows MS-SWIFT's insides."""
