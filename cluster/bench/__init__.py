"""What `livepeer-ray bench` is made of: the requests, the driver, the report and its chart."""
