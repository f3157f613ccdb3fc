"""Encryption of disks: what makes keys and ciphers, apart from the files that they protect.

`luks1.py` and `luks2.py` know the headers, `keys.py` how a passphrase becomes a key, `cipher.py`
how a name such as `aes-xts-plain64` becomes a cipher, `secret.py` where passphrases come from.
"""
